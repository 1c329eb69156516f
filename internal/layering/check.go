package layering

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Breach is one line of source that the tables do not allow.
type Breach struct {
	// File below the root, and line from 1; line 0 speaks of the whole package.
	File string
	// Line of the file.
	Line int
	// What is wrong and where it is decided.
	What string
}

// String returns the breach as a compiler would print it.
func (b Breach) String() string { return fmt.Sprintf("%s:%d: %s", b.File, b.Line, b.What) }

// impure are the packages of the standard library that a pure room has no use for, with all below them.
var impure = []string{
	"crypto/rand", "database/sql", "log", "net", "os", "plugin", "syscall", "testing", "embed", "io/fs",
}

// Check returns every breach of the rules in the files of a module, in the order of the files.
func (r *Rules) Check(module string, files []File) []Breach {
	var out []Breach
	homeless := make(map[string]bool)
	for _, f := range files {
		if only, ok := r.Formulas[f.Path]; ok {
			for _, use := range f.Imports {
				if !slices.Contains(only, use.What) {
					out = append(out, Breach{f.Path, use.Line, fmt.Sprintf("a file of formulas may not import %s", use.What)})
				}
			}
		}
		room, inner := r.of(f.Room)
		if room == nil {
			if !homeless[f.Room] {
				homeless[f.Room] = true
				out = append(out, Breach{f.Path, 1, fmt.Sprintf(
					"package %s has no row; say in docs/ARCHITECTURE.md who it is and what it may import", f.Room)})
			}
			continue
		}
		for _, use := range f.Imports {
			if why := r.judge(module, f, room, inner, use.What); why != "" {
				out = append(out, Breach{f.Path, use.Line, why})
			}
		}
		if r.Pure[room.Name] && !f.Test {
			for _, use := range f.Impure {
				out = append(out, Breach{f.Path, use.Line, fmt.Sprintf("%s is pure, yet calls %s; take it as an argument", room.Name, use.What)})
			}
		}
	}
	return out
}

// of returns the room that a directory belongs to and, when it is an inner room, the inner room's name.
func (r *Rules) of(dir string) (room *Room, inner string) {
	if parent := r.Inner[dir]; parent != "" {
		return r.Rooms[parent], dir
	}
	if room := r.Rooms[dir]; room != nil {
		return room, ""
	}
	return r.Rooms[path.Join(path.Dir(dir), "*")], ""
}

// judge returns why a file of a room may not import a package, or "".
func (r *Rules) judge(module string, f File, room *Room, inner, what string) string {
	to, ours := strings.CutPrefix(what, module)
	switch {
	case ours && (to == "" || to[0] == '/'):
		to = strings.TrimPrefix(to, "/")
		if to == "" {
			to = "."
		}
		return r.judgeOurs(f, room, inner, to)
	case f.Test:
		return ""
	case what == "testing" || strings.HasPrefix(what, "testing/"):
		if !room.TestOnly {
			return fmt.Sprintf("production code may not import %s", what)
		}
	case r.Pure[room.Name] && under(what, impure):
		return fmt.Sprintf("%s is pure and may not import %s", room.Name, what)
	}
	for library, home := range r.Libraries {
		if isLibrary(what, library) && home != f.Room {
			return fmt.Sprintf("%s may not import %s; its one home is %s", f.Room, what, home)
		}
	}
	return ""
}

// judgeOurs returns why a file may not import our package to, or "".
func (r *Rules) judgeOurs(f File, from *Room, inner, to string) string {
	target, targetInner := r.of(to)
	if target == nil {
		return fmt.Sprintf("%s has no row in docs/ARCHITECTURE.md", to)
	}
	shared := targetInner == "" || strings.HasPrefix(targetInner, "protocol/pb/")
	same := target == from && !strings.HasSuffix(from.Name, "/*")
	switch {
	case f.Room == to: // an external test of the package itself
		return ""
	case !shared && target != from:
		return fmt.Sprintf("%s may not import %s, an inner room of %s", f.Room, to, target.Name)
	case !shared && inner != "" && !f.Test:
		return fmt.Sprintf("%s may not import %s; inner rooms do not import one another", f.Room, to)
	case same && inner != "" && targetInner == "" && !f.Test:
		return fmt.Sprintf("%s may not import %s, the room that it is inside of", f.Room, to)
	case same:
		return ""
	case from.Everything:
		return ""
	case f.Test:
		if a, b := role(from.Name), role(target.Name); a != "" && b != "" && a != b {
			return fmt.Sprintf("a test of %s may not import %s; a network with both belongs to internal/testnet, cmd or the root", f.Room, to)
		}
		return ""
	case target.TestOnly:
		if from.TestOnly && from.Allowed[target.Name] {
			return ""
		}
		return fmt.Sprintf("production code may not import %s", to)
	case !from.Allowed[target.Name]:
		return fmt.Sprintf("%s may not import %s; see docs/ARCHITECTURE.md, who may import whom", f.Room, to)
	}
	return ""
}

// role returns the role that a room belongs to, or "".
func role(room string) string {
	for _, role := range []string{"node", "beambridge"} {
		if room == role || strings.HasPrefix(room, role+"/") {
			return role
		}
	}
	return ""
}

// under says that a package is one of a list or below one.
func under(what string, list []string) bool {
	return slices.ContainsFunc(list, func(p string) bool { return what == p || strings.HasPrefix(what, p+"/") })
}

var majorVersion = regexp.MustCompile(`^/v[0-9]+(/|$)`)

// isLibrary says that a package belongs to a library, whatever its major version.
func isLibrary(what, library string) bool {
	rest, ok := strings.CutPrefix(what, library)
	return ok && (rest == "" || rest[0] == '/' || majorVersion.MatchString(rest))
}
