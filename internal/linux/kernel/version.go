package kernel

import "fmt"

// Version is a version of Linux. The zero Version stands for no requirement.
type Version struct{ Major, Minor int }

// String returns the version as in "5.18", "" for the zero Version.
func (v Version) String() string {
	if v == (Version{}) {
		return ""
	}
	return fmt.Sprintf("%d.%d", v.Major, v.Minor)
}

// MarshalText returns String's text.
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Before reports whether v is older than w.
func (v Version) Before(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// Parse reads the start of a release, such as "6.1.0-28-amd64".
func Parse(release string) (v Version, ok bool) {
	if _, err := fmt.Sscanf(release, "%d.%d", &v.Major, &v.Minor); err != nil || v.Major < 0 || v.Minor < 0 {
		return Version{}, false
	}
	return v, true
}
