package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagError rewords an error about a flag for the user.
func flagError(cmd *cobra.Command, err error) error {
	var (
		value   *pflag.InvalidValueError
		missing *pflag.ValueRequiredError
		unknown *pflag.NotExistError
	)
	switch {
	case errors.As(err, new(refusedError)):
		var why refusedError
		errors.As(err, &why)
		return usageError{why}
	case errors.As(err, &value):
		return usageError{errors.New(valueError(value))}
	case errors.As(err, &missing):
		return usagef("--%s needs a value", missing.GetFlag().Name)
	case errors.As(err, &unknown):
		return usageError{errors.New(unknownFlag(cmd, unknown))}
	}
	return usageError{err}
}

// valueError names the values that a flag takes in place of the one given.
func valueError(e *pflag.InvalidValueError) string {
	name, value := "--"+e.GetFlag().Name, printable(e.GetValue())
	if letter := e.GetFlag().Shorthand; letter != "" {
		name += " (-" + letter + ")"
	}
	switch kind := e.GetFlag().Value.Type(); {
	case kind == "duration" && strings.Trim(value, "0123456789.") == "" && value != "":
		return fmt.Sprintf("%s %s has no unit: write %ss for seconds or %sms for milliseconds", name, value, value, value)
	case kind == "duration":
		return fmt.Sprintf("%s takes a time with its unit, as in 500ms or 2s, not %q", name, e.GetValue())
	case kind == "bool":
		return fmt.Sprintf("%s takes no value, or true or false, not %q", name, e.GetValue())
	case errors.Is(e, strconv.ErrRange) && kind == "int16": // priorities
		return fmt.Sprintf("%s %s is out of range (-30000 to 30000)", name, value)
	case errors.Is(e, strconv.ErrRange):
		return fmt.Sprintf("%s %s is out of range", name, value)
	case errors.Is(e, strconv.ErrSyntax):
		return fmt.Sprintf("%s takes a whole number, not %q", name, e.GetValue())
	}
	return fmt.Sprintf("%s %s: %v", name, value, errors.Unwrap(e))
}

// unknownFlag suggests a flag for one that does not exist. A negative number in a filter looks like a flag.
func unknownFlag(cmd *cobra.Command, e *pflag.NotExistError) string {
	name := e.GetSpecifiedName()
	if letters := e.GetSpecifiedShortnames(); letters != "" {
		text := fmt.Sprintf("%s has no flag -%s", cmd.CommandPath(), name)
		if strings.Trim(name, "0123456789") == "" {
			text += "; a filter with a negative number goes in quotes"
		}
		return text
	}
	text := fmt.Sprintf("%s has no flag --%s", cmd.CommandPath(), name)
	best, most := "", len(name)/3+1
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if n := edits(name, f.Name); n < most && !f.Hidden {
			best, most = f.Name, n
		}
	})
	if best != "" {
		text += "; did you mean --" + best + "?"
	}
	return text
}

// edits returns how many bytes must be inserted, deleted or replaced to turn a into b.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0] // of the row above
		row[0] = i + 1
		for j := range len(b) {
			cost := corner
			if a[i] != b[j] {
				cost++
			}
			corner, row[j+1] = row[j+1], min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
