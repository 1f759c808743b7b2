package main

import (
	"bufio"
	"fmt"
	"slices"
	"strings"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/spf13/cobra"
)

func newFilterFields(a *app) *cobra.Command {
	layer := choice{names: append([]string{"all"}, wordsOf(allLayers)...)}
	cmd := &cobra.Command{
		Use:   "fields [flags]",
		Short: "List the fields that filters can test",
		Example: `  divert filter fields
  divert filter fields --layer socket`,
		Args: noArguments,
	}
	var asJSON bool
	addJSON(cmd, &asJSON, "one JSON object per field")
	addChoice(cmd, &layer, "layer", "only the fields of a layer")
	cmd.RunE = func(*cobra.Command, []string) error {
		if asJSON {
			for _, f := range filter.Fields() {
				if layer.value == 0 || slices.Contains(f.Layers, allLayers[layer.value-1]) {
					if err := a.writeJSON(newJSONField(f)); err != nil {
						return err
					}
				}
			}
			return nil
		}
		w := bufio.NewWriter(a.out)
		for _, g := range groupFields(filter.Fields()) {
			if layer.value == 0 || slices.Contains(g.layers, allLayers[layer.value-1]) {
				a.writeFields(w, g)
			}
		}
		return w.Flush()
	}
	return cmd
}

// fieldGroup holds the fields that exist at the same layers.
type fieldGroup struct {
	layers []divert.Layer
	fields []filter.FieldInfo
}

// groupFields groups fields by their layers, in the order of the first field of each group.
func groupFields(fields []filter.FieldInfo) (groups []fieldGroup) {
	for _, f := range fields {
		i := slices.IndexFunc(groups, func(g fieldGroup) bool { return slices.Equal(g.layers, f.Layers) })
		if i < 0 {
			i = len(groups)
			groups = append(groups, fieldGroup{layers: f.Layers})
		}
		groups[i].fields = append(groups[i].fields, f)
	}
	return groups
}

// heading names the layers of a group.
func (g fieldGroup) heading() string {
	if len(g.layers) == len(allLayers) {
		return "all layers"
	}
	return "layers " + strings.Join(wordsOf(g.layers), ", ")
}

// fieldName returns the name of a field as filters write it.
func fieldName(f filter.FieldInfo) string {
	if f.Kind == filter.KindBytes {
		return f.Name + "[i]"
	}
	return f.Name
}

// writeFields writes a group as a table.
func (a *app) writeFields(w *bufio.Writer, g fieldGroup) {
	heading := g.heading()
	heading = strings.ToUpper(heading[:1]) + heading[1:]
	p := printer{colour: a.colour}
	_, _ = w.Write(p.end(append(p.begin(nil, styleHeading), heading...)))
	_ = w.WriteByte('\n')
	for _, f := range g.fields {
		fmt.Fprintf(w, "  %-22s %-26s %s\n", fieldName(f), fieldRange(f), f.Doc)
	}
	_ = w.WriteByte('\n')
}

// fieldRange returns the values of a field.
func fieldRange(f filter.FieldInfo) string {
	switch f.Kind {
	case filter.KindIPv4, filter.KindIPv6, filter.KindAddr:
		return f.Kind.String()
	case filter.KindName:
		return "name in quotes"
	case filter.KindBool:
		return "0 or 1"
	}
	if r := f.Min + " to " + f.Max; len(r) <= 26 {
		return r
	}
	return f.Kind.String()
}
