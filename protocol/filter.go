package protocol

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// FilterVersion names the grammar that this package parses; a change of meaning gets a new name.
const FilterVersion = "gb-filter/1"

// Bounds of a filter: it crosses the wire and is evaluated for every row of a directory (discovery.md 5).
const (
	// MaxFilter bounds the text in bytes.
	MaxFilter = 1024
	// MaxFilterNodes bounds the operators and clauses.
	MaxFilterNodes = 64
	// MaxFilterDepth bounds the nesting of parentheses and negations.
	MaxFilterDepth = 16
	// MaxFilterList bounds the values between [ and ].
	MaxFilterList = 64
)

// ErrFilter is wrapped by every error of ParseFilter.
var ErrFilter = errors.New("protocol: bad filter")

// FilterError says where a filter went wrong and what would fit there. It unwraps to ErrFilter.
type FilterError struct {
	// Column counts bytes from 1.
	Column int
	// Token is the offending text, empty at the end of the filter.
	Token string
	// Problem says what is wrong and what fits, in one sentence.
	Problem string
	// Nearest are up to three names that were perhaps meant.
	Nearest []string
}

// Error tells column, token, problem and suggestions in one line.
func (e *FilterError) Error() string {
	at := "the end"
	if e.Token != "" {
		at = strconv.Quote(e.Token)
	}
	s := fmt.Sprintf("filter column %d at %s: %s", e.Column, at, e.Problem)
	if len(e.Nearest) > 0 {
		s += "; nearest: " + strings.Join(e.Nearest, ", ")
	}
	return s
}

// Unwrap returns ErrFilter.
func (e *FilterError) Unwrap() error { return ErrFilter }

// Filter is a parsed gb-filter/1 expression. It is immutable.
type Filter struct {
	source string
	root   FilterNode
}

// Source returns the text as it was given.
func (f *Filter) Source() string { return f.source }

// Root returns the expression; nil means that everything matches (an empty filter).
func (f *Filter) Root() FilterNode { return f.root }

// String returns the canonical text, which parses to an equal filter.
func (f *Filter) String() string {
	if f.root == nil {
		return ""
	}
	return f.root.String()
}

// Clauses returns the conjuncts of the outermost &&, in the order of the text.
func (f *Filter) Clauses() []FilterNode {
	switch n := f.root.(type) {
	case nil:
		return nil
	case *FilterAnd:
		return n.Of
	default:
		return []FilterNode{n}
	}
}

// Mentions says whether a field occurs anywhere in the filter.
func (f *Filter) Mentions(field FilterField) bool {
	return f.mentions(func(g FilterField) bool { return g == field })
}

// MentionsGPU says whether any gpu.* field occurs: only then does a node need a GPU group that matches.
func (f *Filter) MentionsGPU() bool {
	return f.mentions(func(g FilterField) bool { return g.Scope() == ScopeGroup })
}

// MentionsLocal says whether a field occurs that only the asker knows (node.rtt_ms, node.reputation).
func (f *Filter) MentionsLocal() bool {
	return f.mentions(func(g FilterField) bool { return g.Scope() == ScopeLocal })
}

func (f *Filter) mentions(is func(FilterField) bool) bool {
	found := false
	if f.root != nil {
		walkFilter(f.root, func(n FilterNode) {
			if c, ok := n.(*FilterCompare); ok && is(c.Term.Field) {
				found = true
			}
		})
	}
	return found
}

func walkFilter(n FilterNode, visit func(FilterNode)) {
	visit(n)
	switch n := n.(type) {
	case *FilterAnd:
		for _, k := range n.Of {
			walkFilter(k, visit)
		}
	case *FilterOr:
		for _, k := range n.Of {
			walkFilter(k, visit)
		}
	case *FilterNot:
		walkFilter(n.Of, visit)
	}
}

// WithImplied returns the filter with what its writer left unsaid (discovery.md 5, rule 4), and the texts of
// the added clauses: MIG slices are offered only when gpu.mig is mentioned (asked only of filters about GPUs),
// and nodes that are stale, paused, draining or leaving only when node.state is.
func (f *Filter) WithImplied() (*Filter, []string) {
	var texts []string
	if f.MentionsGPU() && !f.Mentions(FieldGPUMIG) {
		texts = append(texts, `!gpu.mig`)
	}
	if !f.Mentions(FieldNodeState) {
		texts = append(texts, `node.state in ["READY", "BUSY"]`)
	}
	clauses := slices.Clone(f.Clauses())
	for _, t := range texts {
		g, err := ParseFilter(t)
		if err != nil {
			panic("protocol: implied clause does not parse: " + err.Error())
		}
		clauses = append(clauses, g.root)
	}
	switch len(clauses) {
	case 0:
		return &Filter{source: f.source}, texts
	case 1:
		return &Filter{source: f.source, root: clauses[0]}, texts
	default:
		return &Filter{source: f.source, root: &FilterAnd{Of: clauses}}, texts
	}
}

// FilterNode is one of *FilterAnd, *FilterOr, *FilterNot, *FilterCompare, *FilterHasVolume.
type FilterNode interface {
	// String returns the canonical text.
	String() string
	filterNode()
}

// FilterAnd holds when each of its parts does; it has two or more.
type FilterAnd struct{ Of []FilterNode }

// FilterOr holds when one of its parts does; it has two or more.
type FilterOr struct{ Of []FilterNode }

// FilterNot holds when its part does not.
type FilterNot struct{ Of FilterNode }

// FilterOp is a comparison.
type FilterOp uint8

// The comparisons. OpIn is the only one with several values.
const (
	OpEQ FilterOp = iota + 1
	OpNE
	OpLT
	OpLE
	OpGT
	OpGE
	OpIn
)

// String returns the operator's text.
func (o FilterOp) String() string {
	return [...]string{"?", "==", "!=", "<", "<=", ">", ">=", "in"}[min(o, OpIn)]
}

// FilterTerm is the left side of a comparison: a field, or label("k") and verified("k") with their key.
type FilterTerm struct {
	// Field is the compared field, FieldLabel or FieldVerified for the two functions.
	Field FilterField
	// Label is the key of FieldLabel and FieldVerified.
	Label string
}

// FilterCompare compares a term with a value, or with several for OpIn. A boolean field that stands alone is
// compared == true.
type FilterCompare struct {
	// Term is the left side.
	Term FilterTerm
	// Op is the comparison.
	Op FilterOp
	// Values are the right side: one, or for OpIn at least one.
	Values []FilterValue
	// Column of the term in the text, from 1.
	Column int
}

// FilterHasVolume holds when the node holds at least PerMille of the blocks of the volume's tree.
type FilterHasVolume struct {
	// Root is the binary CID.
	Root []byte
	// Text is the CID as it was written.
	Text string
	// PerMille is 1..1000.
	PerMille int
	// Column of the function in the text, from 1.
	Column int
}

func (*FilterAnd) filterNode()       {}
func (*FilterOr) filterNode()        {}
func (*FilterNot) filterNode()       {}
func (*FilterCompare) filterNode()   {}
func (*FilterHasVolume) filterNode() {}

// FilterValue is a literal, resolved for the field that it is compared with.
type FilterValue struct {
	// Kind says which of the other fields are set.
	Kind FilterKind
	// Text is the literal as compared: lower case for hardware words, upper case for states and countries.
	Text string
	// Number of KindNumber.
	Number float64
	// Bool of KindBool.
	Bool bool
	// Version of KindVersion: 1 to 4 numbers.
	Version []uint32
	// GPU is what the name of KindModel stands for.
	GPU GPUSet
	// Place is what the name of KindPlace stands for.
	Place Place
}

// String returns the literal's text.
func (v FilterValue) String() string {
	switch v.Kind {
	case KindNumber:
		return strconv.FormatFloat(v.Number, 'f', -1, 64)
	case KindBool:
		return strconv.FormatBool(v.Bool)
	case KindVersion:
		return "version(" + quoteFilter(v.Text) + ")"
	default:
		return quoteFilter(v.Text)
	}
}

func quoteFilter(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// String returns the canonical text.
func (n *FilterAnd) String() string { return joinNodes(n.Of, " && ") }

// String returns the canonical text.
func (n *FilterOr) String() string { return joinNodes(n.Of, " || ") }

// String returns the canonical text.
func (n *FilterNot) String() string {
	switch k := n.Of.(type) {
	case *FilterNot, *FilterHasVolume:
		return "!" + k.String()
	case *FilterCompare:
		if k.bare() {
			return "!" + k.String()
		}
	}
	return "!(" + n.Of.String() + ")"
}

// String returns the term's text.
func (t FilterTerm) String() string {
	switch t.Field {
	case FieldLabel, FieldVerified:
		return t.Field.String() + "(" + quoteFilter(t.Label) + ")"
	default:
		return t.Field.String()
	}
}

// String returns the canonical text.
func (n *FilterCompare) String() string {
	switch {
	case n.Op == OpIn:
		texts := make([]string, len(n.Values))
		for i, v := range n.Values {
			texts[i] = v.String()
		}
		return n.Term.String() + " in [" + strings.Join(texts, ", ") + "]"
	case n.bare():
		return n.Term.String()
	default:
		return n.Term.String() + " " + n.Op.String() + " " + n.Values[0].String()
	}
}

// String returns the canonical text.
func (n *FilterHasVolume) String() string {
	return fmt.Sprintf("has_volume(%s, %d)", quoteFilter(n.Text), n.PerMille)
}

func joinNodes(of []FilterNode, op string) string {
	texts := make([]string, len(of))
	for i, k := range of {
		texts[i] = k.String()
		switch k.(type) {
		case *FilterAnd, *FilterOr:
			texts[i] = "(" + texts[i] + ")"
		}
	}
	return strings.Join(texts, op)
}

// bare says whether the comparison is a boolean field standing alone.
func (n *FilterCompare) bare() bool {
	return n.Op == OpEQ && n.Values[0].Kind == KindBool && n.Values[0].Bool
}
