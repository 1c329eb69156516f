package layering

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// File is what Check needs to know of one Go source file.
type File struct {
	// Path of the file below the root, with slashes.
	Path string
	// Room is the directory of the file; "." is the root.
	Room string
	// Test says that the file is a test's.
	Test bool
	// Imports in their order.
	Imports []Use
	// Impure are the uses of the clock and of the process's own randomness.
	Impure []Use
}

// Use is an import or a call.
type Use struct {
	// What is an import path, or a function such as time.Now.
	What string
	// Line of the file, from 1.
	Line int
}

// clock are the functions of package time that read the machine's clock or wait for it.
var clock = []string{
	"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick",
}

// seeded are the functions of math/rand that draw nothing from the process's own source.
var seeded = []string{"New", "NewPCG", "NewChaCha8", "NewZipf", "NewSource"}

// Load reads every Go file of the module that fsys holds, whatever its platform or build tags. The error
// names a file that cannot be read or parsed.
func Load(fsys fs.FS) ([]File, error) {
	var files []File
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if p != "." && skipped(fsys, p) {
				return fs.SkipDir
			}
			return nil
		case path.Ext(p) != ".go":
			return nil
		}
		src, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		f, err := parse(p, src)
		files = append(files, f)
		return err
	})
	return files, err
}

// skipped says that a directory belongs to no package of the module.
func skipped(fsys fs.FS, dir string) bool {
	name := path.Base(dir)
	if name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return true
	}
	_, err := fs.Stat(fsys, path.Join(dir, "go.mod"))
	return err == nil
}

func parse(p string, src []byte) (File, error) {
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, p, src, parser.SkipObjectResolution)
	if err != nil {
		return File{}, fmt.Errorf("reading %s: %w", p, err)
	}
	f := File{Path: p, Room: path.Dir(p), Test: strings.HasSuffix(p, "_test.go")}
	local := make(map[string]string) // the name in this file of the packages that can be impure
	for _, spec := range tree.Imports {
		what, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return File{}, fmt.Errorf("reading %s: import %s: %w", p, spec.Path.Value, err)
		}
		f.Imports = append(f.Imports, Use{what, set.Position(spec.Pos()).Line})
		if pkg := map[string]string{"time": "time", "math/rand": "rand", "math/rand/v2": "rand"}[what]; pkg != "" {
			name := pkg
			if spec.Name != nil {
				name = spec.Name.Name
			}
			local[name] = pkg
		}
	}
	ast.Inspect(tree, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok || !ast.IsExported(sel.Sel.Name) {
			return true
		}
		switch pkg := local[x.Name]; {
		case pkg == "time" && slices.Contains(clock, sel.Sel.Name), pkg == "rand" && drawsItself(sel.Sel.Name):
			f.Impure = append(f.Impure, Use{pkg + "." + sel.Sel.Name, set.Position(sel.Pos()).Line})
		}
		return true
	})
	return f, nil
}

// drawsItself says that a function of math/rand draws from the process's own source.
func drawsItself(name string) bool {
	types := []string{"Rand", "Source", "Source64", "PCG", "ChaCha8", "Zipf"}
	return !slices.Contains(seeded, name) && !slices.Contains(types, name)
}
