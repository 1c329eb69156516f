package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	yamltoken "github.com/goccy/go-yaml/token"
)

// A job file is read in two steps: YAML or JSON into a tree of jobNode with positions, then the tree into a Job
// by a table of fields (job_file.go). So both languages have the same rules and messages, and everything wrong
// is found in one reading.

// Bounds of a job file.
const (
	// MaxJobFile bounds the text in bytes; longer inputs go into a file of lines.
	MaxJobFile = 1 << 20
	// maxJobDepth bounds lists and maps inside one another.
	maxJobDepth = 64
)

// jobNodeKind is what a jobNode is.
type jobNodeKind uint8

const (
	nodeNull   jobNodeKind = iota
	nodeText               // quoted, or plain and nothing else
	nodeNumber             // plain; text is as written and may be no JSON number
	nodeBool
	nodeList
	nodeMap
)

var nodeNames = [...]string{"nothing", "a text", "a number", "true or false", "a list", "a map"}

// jobPos is a place in the file, from 1; zero is unknown.
type jobPos struct{ line, col int }

// jobNode is a value of a job file.
type jobNode struct {
	kind  jobNodeKind
	text  string // of a scalar, as written; of a quoted text, what it stands for
	pos   jobPos
	items []*jobNode
	pairs []jobPair
}

// jobPair is one key of a map.
type jobPair struct {
	key   string
	pos   jobPos
	value *jobNode
}

// scalar says that the node is neither a list, a map nor nothing.
func (n *jobNode) scalar() bool {
	return n.kind == nodeText || n.kind == nodeNumber || n.kind == nodeBool
}

// shown is the node as a message quotes it.
func (n *jobNode) shown() string {
	if n.scalar() {
		return clip(n.text, 80)
	}
	return nodeNames[n.kind]
}

// treeError is a file that cannot be read as YAML or JSON at all.
type treeError struct {
	pos     jobPos
	problem string
}

func (e *treeError) Error() string { return e.problem }

func noTree(pos jobPos, format string, args ...any) error {
	return &treeError{pos, fmt.Sprintf(format, args...)}
}

// parseTree reads a text: as JSON when its name ends so or it is an object that parses, else as YAML.
func parseTree(text []byte, name string) (*jobNode, error) {
	switch {
	case len(text) > MaxJobFile:
		return nil, noTree(jobPos{}, "the file has %d bytes, at most %d are read; put long inputs into a file of lines (inputs.lines)", len(text), MaxJobFile)
	case !utf8.Valid(text):
		return nil, noTree(jobPos{}, "the file is no UTF-8 text")
	case strings.HasSuffix(strings.ToLower(name), ".json") || bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) && json.Valid(text):
		return parseJSONTree(text)
	}
	return parseYAMLTree(text)
}

// parseYAMLTree reads YAML of one document, without anchors, aliases, tags and merge keys: a job file says
// everything where it stands.
func parseYAMLTree(text []byte) (root *jobNode, err error) {
	if pos, deep := tooDeep(text); deep {
		return nil, noTree(pos, "lists and maps are nested too deeply")
	}
	defer func() { // the parser's slips on hostile text are the file's fault
		if r := recover(); r != nil {
			root, err = nil, noTree(jobPos{}, "the file is no YAML that can be read")
		}
	}()
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		var y yaml.Error
		if errors.As(err, &y) && y.GetToken() != nil {
			return nil, noTree(tokenPos(y.GetToken()), "no valid YAML: %s", clip(y.GetMessage(), 200))
		}
		return nil, noTree(jobPos{}, "no valid YAML: %.200s", err)
	}
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case root != nil:
			return nil, noTree(tokenPos(doc.Body.GetToken()), "a second document begins here; a job file holds one job")
		default:
			if root, err = yamlNode(doc.Body, 0); err != nil {
				return nil, err
			}
		}
	}
	if root == nil {
		return nil, noTree(jobPos{}, "the file is empty")
	}
	return root, nil
}

// tooDeep looks for nesting that the YAML parser, which recurses, should not be given: brackets, and rows of
// list marks on one line.
func tooDeep(text []byte) (jobPos, bool) {
	const most = 2000 // unbalanced brackets inside of texts count, too
	open, line := 0, 0
	for row := range bytes.Lines(text) {
		line++
		marks := 0
		for i, c := range row {
			switch {
			case c == '[' || c == '{':
				open++
			case (c == ']' || c == '}') && open > 0:
				open--
			case (c == '-' || c == '?' || c == ':') && i+1 < len(row) && (row[i+1] == ' ' || row[i+1] == '\t'):
				marks++
			}
			if open > most || marks > most {
				return jobPos{line, i + 1}, true
			}
		}
	}
	return jobPos{}, false
}

func tokenPos(t *yamltoken.Token) jobPos {
	if t == nil || t.Position == nil {
		return jobPos{}
	}
	return jobPos{t.Position.Line, t.Position.Column}
}

func yamlNode(n ast.Node, depth int) (*jobNode, error) {
	if n == nil {
		return &jobNode{}, nil
	}
	out := &jobNode{pos: tokenPos(n.GetToken())}
	if depth > maxJobDepth {
		return nil, noTree(out.pos, "lists and maps are nested more than %d deep", maxJobDepth)
	}
	if n.GetToken() != nil {
		out.text = n.GetToken().Value
	}
	switch n := n.(type) {
	case *ast.NullNode:
		out.text = ""
	case *ast.BoolNode:
		out.kind = nodeBool
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		out.kind = nodeNumber
	case *ast.StringNode:
		out.kind, out.text = nodeText, n.Value
		// The parser takes 1e-3 for a text; a grid of learning rates does not.
		if n.Token.Type == yamltoken.StringType && looksNumeric(n.Value) {
			out.kind = nodeNumber
		}
	case *ast.LiteralNode:
		out.kind, out.text = nodeText, n.Value.Value
	case *ast.SequenceNode:
		out.kind = nodeList
		for _, v := range n.Values {
			item, err := yamlNode(v, depth+1)
			if err != nil {
				return nil, err
			}
			out.items = append(out.items, item)
		}
	case ast.MapNode:
		out.kind = nodeMap
		return out, out.addYAML(n, depth)
	case *ast.AnchorNode, *ast.AliasNode:
		return nil, noTree(out.pos, "anchors and aliases are not read in a job file; write the value out")
	case *ast.TagNode:
		return nil, noTree(out.pos, "tags such as !!str are not read in a job file; quote a text instead")
	default:
		return nil, noTree(out.pos, "%s is not read in a job file", n.Type())
	}
	return out, nil
}

func (n *jobNode) addYAML(m ast.MapNode, depth int) error {
	for it := m.MapRange(); it.Next(); {
		pair := jobPair{pos: tokenPos(it.Key().GetToken())}
		switch k := it.Key().(type) {
		case *ast.StringNode:
			pair.key = k.Value
		case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
			pair.key = k.GetToken().Value
		default:
			return noTree(pair.pos, "%s as a key is not read in a job file", k.Type())
		}
		value, err := yamlNode(it.Value(), depth+1)
		if err != nil {
			return err
		}
		pair.value = value
		if err := n.add(pair); err != nil {
			return err
		}
	}
	if len(n.pairs) > 0 {
		n.pos = n.pairs[0].pos
	}
	return nil
}

func (n *jobNode) add(p jobPair) error {
	for _, q := range n.pairs {
		if q.key == p.key {
			return noTree(p.pos, "%.80q is there twice; the first is in line %d", p.key, q.pos.line)
		}
	}
	if len(n.pairs) >= 4096 { // bounds the search for twins; the widest map of a job is env with 256
		return noTree(p.pos, "a map has more than 4,096 keys")
	}
	n.pairs = append(n.pairs, p)
	return nil
}

// looksNumeric says that a plain word is a number, JSON's or anybody's.
func looksNumeric(s string) bool {
	if s == "" || strings.IndexByte("+-.0123456789", s[0]) < 0 {
		return false
	}
	_, err := strconv.ParseFloat(s, 64)
	return err == nil || errors.Is(err, strconv.ErrRange)
}

// jsonTree reads JSON with positions.
type jsonTree struct {
	text []byte
	dec  *json.Decoder
	seen int // offset up to which lines are counted
	pos  jobPos
}

func parseJSONTree(text []byte) (*jobNode, error) {
	t := &jsonTree{text: text, dec: json.NewDecoder(bytes.NewReader(text)), pos: jobPos{1, 1}}
	t.dec.UseNumber()
	root, err := t.value(0)
	if err != nil {
		return nil, err
	}
	at := t.next()
	if _, err := t.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, noTree(at, "no valid JSON: something follows the job")
	}
	return root, nil
}

// next is the position of the token to come.
func (t *jsonTree) next() jobPos {
	to := int(t.dec.InputOffset())
	for to < len(t.text) && strings.IndexByte(" \t\r\n,:", t.text[to]) >= 0 {
		to++
	}
	for ; t.seen < to; t.seen++ {
		switch c := t.text[t.seen]; {
		case c == '\n':
			t.pos = jobPos{t.pos.line + 1, 1}
		case utf8.RuneStart(c):
			t.pos.col++
		}
	}
	return t.pos
}

func (t *jsonTree) token() (json.Token, jobPos, error) {
	at := t.next()
	tok, err := t.dec.Token()
	switch {
	case errors.Is(err, io.EOF) && at == jobPos{1, 1}:
		return nil, at, noTree(jobPos{}, "the file is empty")
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, at, noTree(at, "no valid JSON: the file ends too early")
	case err != nil:
		return nil, at, noTree(at, "no valid JSON: %.200s", err)
	}
	return tok, at, nil
}

func (t *jsonTree) value(depth int) (*jobNode, error) {
	tok, at, err := t.token()
	if err != nil {
		return nil, err
	}
	n := &jobNode{pos: at}
	if depth > maxJobDepth {
		return nil, noTree(at, "lists and maps are nested more than %d deep", maxJobDepth)
	}
	switch tok := tok.(type) {
	case string:
		n.kind, n.text = nodeText, tok
	case json.Number:
		n.kind, n.text = nodeNumber, tok.String()
	case bool:
		n.kind, n.text = nodeBool, strconv.FormatBool(tok)
	case json.Delim:
		n.kind = nodeList
		if tok == '{' {
			n.kind = nodeMap
		}
		return n, t.inside(n, depth)
	}
	return n, nil
}

// inside reads a list or map to its end.
func (t *jsonTree) inside(n *jobNode, depth int) error {
	for t.dec.More() {
		if n.kind == nodeList {
			item, err := t.value(depth + 1)
			if err != nil {
				return err
			}
			n.items = append(n.items, item)
			continue
		}
		key, at, err := t.token()
		if err != nil {
			return err
		}
		value, err := t.value(depth + 1)
		if err != nil {
			return err
		}
		name, _ := key.(string) // the decoder admits nothing else as a key
		if err := n.add(jobPair{name, at, value}); err != nil {
			return err
		}
	}
	_, _, err := t.token()
	return err
}

// canonical writes the node as JSON: keys sorted by encoding/json's rule, no spaces, scalars as they are
// written. It returns a sentence when a number is none of JSON's.
func (n *jobNode) canonical() (json.RawMessage, error) {
	switch n.kind {
	case nodeNull:
		return json.RawMessage("null"), nil
	case nodeBool:
		return json.RawMessage(strings.ToLower(n.text)), nil
	case nodeNumber:
		if !json.Valid([]byte(n.text)) {
			return nil, fmt.Errorf("%.40q is no number in decimal: write it as 10, -0.5 or 1e-3, or quote it", n.text)
		}
		return json.RawMessage(n.text), nil
	case nodeText:
		return plainJSON(n.text)
	case nodeList:
		list := make([]json.RawMessage, len(n.items))
		for i, item := range n.items {
			v, err := item.canonical()
			if err != nil {
				return nil, err
			}
			list[i] = v
		}
		return plainJSON(list)
	}
	m := make(map[string]json.RawMessage, len(n.pairs))
	for _, p := range n.pairs {
		v, err := p.value.canonical()
		if err != nil {
			return nil, err
		}
		m[p.key] = v
	}
	return plainJSON(m)
}

// plainJSON is json.Marshal without HTML's escapes.
func plainJSON(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b.Bytes()), nil
}
