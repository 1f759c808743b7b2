//go:build linux

package kernel

import "testing"

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		release string
		want    Version
		ok      bool
	}{
		{"6.1.0-28-amd64", Version{6, 1}, true},
		{"5.10", Version{5, 10}, true},
		{"6.18.44-fc-v857", Version{6, 18}, true},
		{"6.12-rc3", Version{6, 12}, true},
		{"", Version{}, false},
		{"linux", Version{}, false},
		{"5.15.153.1-microsoft-standard-WSL2", Version{5, 15}, true},
		{"next", Version{}, false},
		{"6", Version{}, false},
		{"-6.1", Version{}, false},
	} {
		if v, ok := Parse(tt.release); v != tt.want || ok != tt.ok {
			t.Errorf("%q: %v, %v", tt.release, v, ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("6.1.0-28-amd64")
	f.Fuzz(func(t *testing.T, release string) {
		if v, ok := Parse(release); !ok && v != (Version{}) || v.Major < 0 || v.Minor < 0 {
			t.Errorf("%q: %v, %v", release, v, ok)
		}
	})
}

func TestRunning(t *testing.T) {
	v, known := Running()
	if !known {
		t.Fatal("the kernel does not tell its version")
	}
	if !AtLeast(v) || !AtLeast(Version{3, 0}) || AtLeast(Version{v.Major, v.Minor + 1}) || AtLeast(Version{v.Major + 1, 0}) {
		t.Errorf("%v", v)
	}
}
