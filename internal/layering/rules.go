package layering

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// ErrTable means that the document lacks a table or that a row of one cannot be read.
var ErrTable = errors.New("layering: table cannot be read")

// The words of the document's tables.
const (
	wordNothing    = "nothing"
	wordEverything = "everything"
	wordTestOnly   = "only tests may import it"
	wordNobody     = "nobody imports"
)

// Room is one row of the table of rooms.
type Room struct {
	// Name is the package's path below the module; "." is the root. A last element "*" stands for any name.
	Name string
	// Everything says that the room may import every other room.
	Everything bool
	// Allowed holds the rooms that production code may import.
	Allowed map[string]bool
	// TestOnly says that production code may not import it, and that it may import testing itself.
	TestOnly bool
}

// Rules are the tables of the document.
type Rules struct {
	// Rooms by name.
	Rooms map[string]*Room
	// Inner gives the room that an inner room belongs to, by the inner room's name.
	Inner map[string]string
	// Libraries gives the room that alone may import a library, by the library's module path without its
	// major version.
	Libraries map[string]string
	// Pure rooms use no clock, randomness, file, network or log.
	Pure map[string]bool
	// Formulas gives the packages that a file may import and no others, by the file's path.
	Formulas map[string][]string
}

// Parse reads the tables of the document. It returns ErrTable, with the row, when one is missing, does not
// parse, is doubled, or names a room that has no row.
func Parse(document string) (*Rules, error) {
	r := &Rules{
		Rooms: make(map[string]*Room), Inner: make(map[string]string),
		Libraries: make(map[string]string), Pure: make(map[string]bool),
		Formulas: make(map[string][]string),
	}
	for _, table := range []struct {
		heading string
		row     func(cells []string) error
	}{
		{"Who may import whom", r.room},
		{"Inner rooms", r.inner},
		{"Libraries with one home", r.library},
		{"Pure rooms", r.pure},
		{"Formulas", r.formula},
	} {
		rows := tableUnder(document, table.heading)
		if len(rows) == 0 {
			return nil, fmt.Errorf("%w: no rows under the heading %q", ErrTable, table.heading)
		}
		for _, cells := range rows {
			if err := table.row(cells); err != nil {
				return nil, fmt.Errorf("%w: %w: | %s |", ErrTable, err, strings.Join(cells, " | "))
			}
		}
	}
	return r, r.closed()
}

// room takes a row: names, what they may import, why.
func (r *Rules) room(cells []string) error {
	if len(cells) != 3 {
		return errors.New("want three cells")
	}
	allowed := make(map[string]bool)
	for _, name := range names(cells[1]) {
		allowed[name] = true
	}
	word := strings.TrimSpace(cells[1])
	if len(allowed) == 0 && word != wordNothing && word != wordEverything {
		return errors.New("the second cell names no room, and is neither nothing nor everything")
	}
	rooms := names(cells[0])
	if len(rooms) == 0 {
		return errors.New("the first cell names no room")
	}
	for _, name := range rooms {
		if r.Rooms[name] != nil {
			return fmt.Errorf("%s has a row already", name)
		}
		r.Rooms[name] = &Room{
			Name: name, Everything: word == wordEverything, Allowed: allowed,
			TestOnly: strings.Contains(cells[2], wordTestOnly) || strings.Contains(cells[2], wordNobody),
		}
	}
	return nil
}

// inner takes a row: a room, its inner rooms.
func (r *Rules) inner(cells []string) error {
	if len(cells) != 2 || len(names(cells[0])) != 1 || len(names(cells[1])) == 0 {
		return errors.New("want one room and its inner rooms")
	}
	parent := names(cells[0])[0]
	for _, name := range names(cells[1]) {
		if !strings.HasPrefix(name, parent+"/") {
			return fmt.Errorf("%s is not inside %s", name, parent)
		}
		r.Inner[name] = parent
	}
	return nil
}

// library takes a row: a library, its room.
func (r *Rules) library(cells []string) error {
	if len(cells) != 2 || len(names(cells[0])) != 1 || len(names(cells[1])) != 1 {
		return errors.New("want one library and one room")
	}
	r.Libraries[names(cells[0])[0]] = names(cells[1])[0]
	return nil
}

// pure takes a row: a room, what it computes.
func (r *Rules) pure(cells []string) error {
	if len(cells) != 2 || len(names(cells[0])) != 1 {
		return errors.New("want one room")
	}
	r.Pure[names(cells[0])[0]] = true
	return nil
}

// formula takes a row: files, what they may import.
func (r *Rules) formula(cells []string) error {
	if len(cells) != 2 || len(names(cells[0])) == 0 {
		return errors.New("want files and their imports")
	}
	for _, file := range names(cells[0]) {
		r.Formulas[file] = names(cells[1])
	}
	return nil
}

// closed returns ErrTable when a row speaks of a room that has none.
func (r *Rules) closed() error {
	known := func(name string) bool { return r.Rooms[name] != nil || r.Inner[name] != "" }
	for _, name := range slices.Sorted(maps.Keys(r.Rooms)) {
		for _, to := range slices.Sorted(maps.Keys(r.Rooms[name].Allowed)) {
			if r.Rooms[to] == nil {
				return fmt.Errorf("%w: %s may import %s, which has no row", ErrTable, name, to)
			}
		}
	}
	for what, list := range map[string][]string{
		"the table of inner rooms": slices.Sorted(maps.Values(r.Inner)),
		"the table of libraries":   slices.Sorted(maps.Values(r.Libraries)),
		"the table of pure rooms":  slices.Sorted(maps.Keys(r.Pure)),
	} {
		for _, name := range list {
			if !known(name) {
				return fmt.Errorf("%w: %s speaks of %s, which has no row", ErrTable, what, name)
			}
		}
	}
	return nil
}

// tableUnder returns the rows of the first table after a heading and before the next one.
func tableUnder(document, heading string) (rows [][]string) {
	inSection, head := false, 2 // a table's first two lines are its head
	for line := range strings.Lines(document) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "#"):
			if inSection {
				return rows
			}
			inSection = strings.TrimSpace(strings.TrimLeft(line, "#")) == heading
		case !inSection:
		case !strings.HasPrefix(line, "|"):
			if len(rows) > 0 {
				return rows
			}
		case head > 0:
			head--
		default:
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows = append(rows, cells)
		}
	}
	return rows
}

var (
	codeSpan = regexp.MustCompile("`([^`]+)`")
	braces   = regexp.MustCompile(`\{([^{}]*)\}`)
)

// names returns what stands in backquotes in a cell, with {a,b} spelt out.
func names(cell string) (out []string) {
	for _, m := range codeSpan.FindAllStringSubmatch(cell, -1) {
		out = append(out, spellOut(m[1])...)
	}
	return out
}

// spellOut returns every name that a pattern with {a,b} stands for.
func spellOut(pattern string) (out []string) {
	at := braces.FindStringSubmatchIndex(pattern)
	if at == nil {
		return []string{pattern}
	}
	for word := range strings.SplitSeq(pattern[at[2]:at[3]], ",") {
		out = append(out, spellOut(pattern[:at[0]]+strings.TrimSpace(word)+pattern[at[1]:])...)
	}
	return out
}
