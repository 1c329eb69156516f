package doccheck

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// MaxDocLines is the length in lines that a doc.go may have: what a reader takes in at one look.
const MaxDocLines = 40

// Gap is something exported without an explanation.
type Gap struct {
	// File below the root, and line from 1.
	File string
	// Line of the file.
	Line int
	// What is missing.
	What string
}

// String returns the gap as a compiler would print it.
func (g Gap) String() string { return fmt.Sprintf("%s:%d: %s", g.File, g.Line, g.What) }

// Check returns the gaps of every package in the module that fsys holds, ordered by file and line. The error
// names a file that cannot be read or parsed.
func Check(fsys fs.FS) ([]Gap, error) {
	c := &checker{set: token.NewFileSet(), packages: make(map[string]*pkg)}
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if p != "." && skipped(fsys, p) {
				return fs.SkipDir
			}
			return nil
		case path.Ext(p) != ".go" || strings.HasSuffix(p, "_test.go"):
			return nil
		}
		src, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		return c.file(p, src)
	})
	c.finish()
	return c.gaps, err
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

// pkg is what is known of one package's own comment.
type pkg struct {
	name, first string // its name, and the first of its files
	documented  bool
}

type checker struct {
	set      *token.FileSet
	packages map[string]*pkg // by directory
	gaps     []Gap
}

func (c *checker) gap(pos token.Pos, format string, args ...any) {
	at := c.set.Position(pos)
	c.gaps = append(c.gaps, Gap{at.Filename, at.Line, fmt.Sprintf(format, args...)})
}

func (c *checker) file(p string, src []byte) error {
	tree, err := parser.ParseFile(c.set, p, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return fmt.Errorf("reading %s: %w", p, err)
	}
	if ast.IsGenerated(tree) {
		return nil
	}
	of := c.packages[path.Dir(p)]
	if of == nil {
		of = &pkg{name: tree.Name.Name, first: p}
		c.packages[path.Dir(p)] = of
	}
	if tree.Doc != nil {
		of.documented = true
		if want := "Package " + of.name + " "; of.name != "main" && !strings.HasPrefix(tree.Doc.Text(), want) {
			c.gap(tree.Doc.Pos(), "the comment of package %s does not begin with %q", of.name, want)
		}
	}
	if lines := bytes.Count(src, []byte("\n")); path.Base(p) == "doc.go" && lines > MaxDocLines {
		c.gap(tree.Package, "doc.go has %d lines, more than %d", lines, MaxDocLines)
	}
	for _, decl := range tree.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			c.function(decl)
		case *ast.GenDecl:
			c.declaration(decl)
		}
	}
	return nil
}

// finish adds what is only known when every file was read.
func (c *checker) finish() {
	for _, dir := range slices.Sorted(maps.Keys(c.packages)) {
		if p := c.packages[dir]; !p.documented {
			c.gaps = append(c.gaps, Gap{p.first, 1, fmt.Sprintf("package %s has no comment; write a doc.go", p.name)})
		}
	}
	slices.SortStableFunc(c.gaps, func(a, b Gap) int {
		if n := strings.Compare(a.File, b.File); n != 0 {
			return n
		}
		return a.Line - b.Line
	})
}

func (c *checker) function(d *ast.FuncDecl) {
	if !d.Name.IsExported() {
		return
	}
	kind, name := "function", d.Name.Name
	if d.Recv != nil {
		of := receiver(d.Recv.List[0].Type)
		if !ast.IsExported(of) {
			return
		}
		kind, name = "method", of+"."+name
	}
	switch {
	case d.Doc == nil || d.Doc.Text() == "":
		c.gap(d.Pos(), "%s %s has no comment", kind, name)
	case !strings.HasPrefix(d.Doc.Text(), d.Name.Name):
		c.gap(d.Pos(), "the comment of %s %s does not begin with %s", kind, name, d.Name.Name)
	}
}

// receiver returns the name of a receiver's type.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

func (c *checker) declaration(d *ast.GenDecl) {
	switch d.Tok {
	case token.TYPE:
		for _, spec := range d.Specs {
			spec := spec.(*ast.TypeSpec)
			if !spec.Name.IsExported() {
				continue
			}
			doc := spec.Doc
			if doc == nil && !d.Lparen.IsValid() {
				doc = d.Doc
			}
			if doc == nil && spec.Comment == nil {
				c.gap(spec.Pos(), "type %s has no comment", spec.Name.Name)
			} else if doc != nil && !beginsWith(doc.Text(), spec.Name.Name) {
				c.gap(spec.Pos(), "the comment of type %s does not begin with its name", spec.Name.Name)
			}
			c.members(spec, doc.Text())
		}
	case token.CONST, token.VAR:
		grouped := d.Doc != nil
		run := run{set: c.set}
		for _, spec := range d.Specs {
			spec := spec.(*ast.ValueSpec)
			explained := run.explains(spec.Pos(), spec.End(), spec.Doc, spec.Comment, spec.Names)
			for _, name := range spec.Names {
				if name.IsExported() && !grouped && !explained {
					c.gap(name.Pos(), "%s %s has no comment", d.Tok, name.Name)
				}
			}
		}
	}
}

// beginsWith says that a comment begins with a name, with or without an article.
func beginsWith(text, name string) bool {
	for _, article := range []string{"A ", "An ", "The "} {
		text = strings.TrimPrefix(text, article)
	}
	return strings.HasPrefix(text, name)
}

// members checks the fields of a struct and the methods of an interface, whose type has the comment doc.
func (c *checker) members(spec *ast.TypeSpec, doc string) {
	var list *ast.FieldList
	kind := "field"
	switch t := spec.Type.(type) {
	case *ast.StructType:
		list = t.Fields
	case *ast.InterfaceType:
		list, kind = t.Methods, "method"
	default:
		return
	}
	line := func(pos token.Pos) int { return c.set.Position(pos).Line }
	if line(list.Opening) == line(list.Closing) {
		return // the type's comment speaks of what fits beside it
	}
	run := run{set: c.set, last: line(list.Opening), text: doc}
	for _, field := range list.List {
		explained := run.explains(field.Pos(), field.End(), field.Doc, field.Comment, field.Names)
		for _, name := range field.Names {
			if name.IsExported() && !explained {
				c.gap(name.Pos(), "%s %s.%s has no comment", kind, spec.Name.Name, name.Name)
			}
		}
	}
}

// run is a block of lines without a blank one, in which a comment may explain what follows it by name.
type run struct {
	set  *token.FileSet
	last int // line on which the block's last entry ended
	text string
}

// explains says that an entry has a comment of its own or that the block's comment names it.
func (r *run) explains(pos, end token.Pos, doc, line *ast.CommentGroup, names []*ast.Ident) bool {
	first := r.set.Position(pos).Line
	if doc != nil {
		first = r.set.Position(doc.Pos()).Line
	}
	if first > r.last+1 {
		r.text = ""
	}
	r.last = r.set.Position(end).Line
	if doc != nil {
		r.text = doc.Text()
	}
	if doc != nil || line != nil {
		return true
	}
	return !slices.ContainsFunc(names, func(n *ast.Ident) bool { return !mentions(r.text, n.Name) })
}

// mentions says that a text has a name as a word of its own.
func mentions(text, name string) bool {
	return slices.Contains(strings.FieldsFunc(text, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}), name)
}
