package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
)

// output is the --output flag of a command.
type output struct {
	format string
	lists  bool
}

// flag adds --output; lists also come as ndjson and csv.
func (o *output) flag(c *cobra.Command, lists bool) {
	o.lists = lists
	text := "table or json"
	if lists {
		text = "table, json, ndjson or csv"
	}
	c.Flags().StringVarP(&o.format, "output", "o", "table", text)
	check := c.PreRunE
	c.PreRunE = func(c *cobra.Command, args []string) error {
		switch {
		case o.format == "table", o.format == "json", lists && (o.format == "ndjson" || o.format == "csv"):
		default:
			return usagef("--output is %q, want %s", o.format, text)
		}
		if check != nil {
			return check(c, args)
		}
		return nil
	}
}

func (o *output) json() bool { return o.format != "table" }

// object writes one value as JSON, or by text.
func (o *output) object(w io.Writer, v any, text func(io.Writer)) error {
	if !o.json() {
		text(w)
		return nil
	}
	return writeJSON(w, v, true)
}

func writeJSON(w io.Writer, v any, indent bool) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if indent {
		enc.SetIndent("", "  ")
	}
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// column is one column of a list.
type column[T any] struct {
	head string
	cell func(*T) string
}

// list writes rows in the chosen format. CSV has the table's columns with lower-case heads.
func list[T any](o *output, w io.Writer, rows []T, columns []column[T]) error {
	switch o.format {
	case "json":
		if rows == nil {
			rows = []T{}
		}
		return writeJSON(w, rows, true)
	case "ndjson":
		for i := range rows {
			if err := writeJSON(w, &rows[i], false); err != nil {
				return err
			}
		}
		return nil
	case "csv":
		return listCSV(w, rows, columns)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for i, c := range columns {
		_, _ = fmt.Fprint(t, sep(i, "\t"), c.head)
	}
	_, _ = fmt.Fprintln(t)
	for k := range rows {
		for i, c := range columns {
			_, _ = fmt.Fprint(t, sep(i, "\t"), printable(c.cell(&rows[k])))
		}
		_, _ = fmt.Fprintln(t)
	}
	return t.Flush()
}

func listCSV[T any](w io.Writer, rows []T, columns []column[T]) error {
	out := csv.NewWriter(w)
	record := make([]string, len(columns))
	for i, c := range columns {
		record[i] = strings.ReplaceAll(strings.ToLower(c.head), " ", "_")
	}
	err := out.Write(record)
	for k := range rows {
		for i, c := range columns {
			record[i] = c.cell(&rows[k])
		}
		if err == nil {
			err = out.Write(record)
		}
	}
	out.Flush()
	if err == nil {
		err = out.Error()
	}
	if err != nil {
		return fmt.Errorf("writing CSV: %w", err)
	}
	return nil
}

func sep(i int, s string) string {
	if i == 0 {
		return ""
	}
	return s
}

// printable keeps what others wrote from steering the terminal, and from looking like something else: what turns the direction of
// writing round or cannot be seen is written as its number.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case unicode.IsControl(r):
			b.WriteByte('?')
		case unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector):
			fmt.Fprintf(&b, "\\u{%x}", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// shortID shortens a peer ID to its telling end; every Ed25519 ID begins alike.
func shortID(id string) string {
	if len(id) <= 14 {
		return id
	}
	return "…" + id[len(id)-10:]
}

func jsonBytes(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	return append(b, '\n'), nil
}

// firstLine cuts a cause to what one reads at a glance; the whole of it is in job status --output json.
func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > 200 {
		s = string(r[:200]) + "…"
	}
	return printable(s)
}
