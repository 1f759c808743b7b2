package divert

import (
	"fmt"
	"strconv"
	"strings"
)

// flagNames names the flags, in the order they print.
var flagNames = [...]struct {
	flag Flag
	name string
}{
	{Sniff, "SNIFF"}, {Drop, "DROP"}, {RecvOnly, "RECV_ONLY"}, {SendOnly, "SEND_ONLY"},
	{NoInstall, "NO_INSTALL"}, {Fragments, "FRAGMENTS"},
}

// String returns the flags' names joined by "|", "0" if there are none.
func (f Flag) String() string {
	var names []string
	for _, n := range flagNames {
		if f&n.flag != 0 {
			names = append(names, n.name)
			f &^= n.flag
		}
	}
	if f != 0 {
		names = append(names, fmt.Sprintf("%#x", uint64(f)))
	}
	if names == nil {
		return "0"
	}
	return strings.Join(names, "|")
}

// MarshalText returns what String does, in lower case: sniff|recv_only.
func (f Flag) MarshalText() ([]byte, error) { return []byte(strings.ToLower(f.String())), nil }

// UnmarshalText sets the flags from text in the form of String or MarshalText, in upper or lower case. Empty text means
// no flags.
func (f *Flag) UnmarshalText(text []byte) error {
	var flags Flag
	if len(text) > 0 {
		for word := range strings.SplitSeq(string(text), "|") {
			flag, err := flagOf(strings.TrimSpace(word))
			if err != nil {
				return err
			}
			flags |= flag
		}
	}
	*f = flags
	return nil
}

func flagOf(word string) (Flag, error) {
	names := make([]string, len(flagNames))
	for i, n := range flagNames {
		if strings.EqualFold(word, n.name) {
			return n.flag, nil
		}
		names[i] = strings.ToLower(n.name)
	}
	if number, err := strconv.ParseUint(word, 0, 64); err == nil { // flags without a name
		return Flag(number), nil
	}
	return 0, fmt.Errorf("there is no flag %q; the flags are %s, joined by |", word, strings.Join(names, ", "))
}

// engineWords are the engines as text.
var engineWords = [...]string{EngineAuto: "auto", EngineKernel: "kernel", EngineInterpreter: "interpreter"}

// String returns the engine in a word: auto, kernel or interpreter.
func (e Engine) String() string {
	if int(e) < len(engineWords) {
		return engineWords[e]
	}
	return fmt.Sprintf("Engine(%d)", uint8(e))
}

// MarshalText returns what String does. It fails for a number that is no engine.
func (e Engine) MarshalText() ([]byte, error) {
	if int(e) >= len(engineWords) {
		return nil, fmt.Errorf("there is no engine %d", uint8(e))
	}
	return []byte(engineWords[e]), nil
}

// UnmarshalText sets the engine from a word, in upper or lower case.
func (e *Engine) UnmarshalText(text []byte) error {
	for i, word := range engineWords {
		if strings.EqualFold(string(text), word) {
			*e = Engine(i)
			return nil
		}
	}
	return fmt.Errorf("there is no engine %q; the engines are %s", text, strings.Join(engineWords[:], ", "))
}
