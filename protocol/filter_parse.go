package protocol

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// ParseFilter parses gb-filter/1:
//
//	or    = and { "||" and }
//	and   = not { "&&" not }
//	not   = "!" ( not | field ) | "(" or ")" | has_volume("cid", n) | term [ op value | "in" "[" value { "," value } "]" ]
//	term  = field | label("k") | verified("k")
//	op    = "==" | "!=" | "<" | "<=" | ">" | ">="
//	value = "text" | 'text' | number | true | false | version("550.54")
//
// An empty text matches everything. Literals are resolved for their field: GPU names to sets of slugs, places
// to countries. Errors are *FilterError and wrap ErrFilter.
func ParseFilter(text string) (*Filter, error) {
	if len(text) > MaxFilter {
		return nil, &FilterError{Column: MaxFilter + 1, Token: "…", Problem: fmt.Sprintf("a filter has at most %d bytes, this one has %d", MaxFilter, len(text))}
	}
	p := &filterParser{text: text}
	if err := p.next(); err != nil {
		return nil, err
	}
	if p.tok.kind == tokEnd {
		return &Filter{source: text}, nil
	}
	root, err := p.or(0)
	if err != nil {
		return nil, err
	}
	if p.tok.kind != tokEnd {
		return nil, p.fail("expected &&, || or the end")
	}
	return &Filter{source: text, root: root}, nil
}

type tokenKind uint8

const (
	tokEnd tokenKind = iota
	tokWord
	tokNumber
	tokText
	tokSign
)

type token struct {
	kind   tokenKind
	raw    string // as written
	text   string // the value of a text literal
	column int
}

type filterParser struct {
	text  string
	pos   int
	tok   token
	nodes int
}

func (p *filterParser) fail(problem string, near ...string) *FilterError {
	raw := p.tok.raw
	if len(raw) > 40 {
		raw = strings.ToValidUTF8(raw[:40], "") + "…"
	}
	return &FilterError{Column: p.tok.column, Token: raw, Problem: problem, Nearest: near}
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }

// next reads one token.
func (p *filterParser) next() error {
	for p.pos < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.pos]) >= 0 {
		p.pos++
	}
	start := p.pos
	p.tok = token{column: start + 1}
	if start == len(p.text) {
		return nil
	}
	c := p.text[start]
	switch {
	case isLetter(c):
		for p.pos < len(p.text) && (isLetter(p.text[p.pos]) || isDigit(p.text[p.pos]) || p.text[p.pos] == '.') {
			p.pos++
		}
		p.tok.kind = tokWord
	case isDigit(c):
		for p.pos < len(p.text) && (isDigit(p.text[p.pos]) || p.text[p.pos] == '.' || isLetter(p.text[p.pos])) {
			p.pos++
		}
		p.tok.kind = tokNumber
	case c == '"' || c == '\'':
		return p.quoted(c)
	default:
		return p.sign()
	}
	p.tok.raw = p.text[start:p.pos]
	return nil
}

func (p *filterParser) sign() error {
	for _, s := range []string{"&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ","} {
		if strings.HasPrefix(p.text[p.pos:], s) {
			p.tok.kind, p.tok.raw = tokSign, s
			p.pos += len(s)
			return nil
		}
	}
	r, n := utf8.DecodeRuneInString(p.text[p.pos:])
	p.tok.raw = p.text[p.pos : p.pos+n]
	switch r {
	case '=':
		return p.fail("write == to compare")
	case '&', '|':
		return p.fail("write && or ||")
	case '-', '+', '*', '/', '%':
		return p.fail("there is no arithmetic, and no value is negative")
	default:
		return p.fail("this character has no meaning here; fields, \"texts\", numbers, ( ) [ ] ! && || and comparisons do")
	}
}

func (p *filterParser) quoted(quote byte) error {
	var b strings.Builder
	start := p.pos
	for p.pos++; p.pos < len(p.text); p.pos++ {
		switch c := p.text[p.pos]; {
		case c == quote:
			p.pos++
			p.tok.kind, p.tok.raw, p.tok.text = tokText, p.text[start:p.pos], b.String()
			if !utf8.ValidString(p.tok.text) {
				return p.fail("a text has to be UTF-8")
			}
			return nil
		case c == '\\':
			p.pos++
			if p.pos == len(p.text) || strings.IndexByte(`\"'`, p.text[p.pos]) < 0 {
				p.tok.raw = `\`
				p.tok.column = p.pos
				return p.fail(`after \ only \ " and ' may stand`)
			}
			b.WriteByte(p.text[p.pos])
		case c < 0x20 || c == 0x7f:
			p.tok.column = p.pos + 1
			p.tok.raw = string(c)
			return p.fail("a text holds no control characters")
		default:
			b.WriteByte(c)
		}
	}
	p.tok.raw = p.text[start:]
	return p.fail("the text does not end: its closing " + string(quote) + " is missing")
}

func (p *filterParser) is(sign string) bool { return p.tok.kind == tokSign && p.tok.raw == sign }

func (p *filterParser) expect(sign, why string) error {
	if !p.is(sign) {
		return p.fail("expected " + sign + " " + why)
	}
	return p.next()
}

// count books a node of the tree.
func (p *filterParser) count() error {
	if p.nodes++; p.nodes > MaxFilterNodes {
		return p.fail(fmt.Sprintf("a filter has at most %d clauses and operators; use in [..] for alternatives", MaxFilterNodes))
	}
	return nil
}

func (p *filterParser) or(depth int) (FilterNode, error) { return p.chain("||", depth) }

// chain parses operands joined by one operator; && binds tighter than ||.
func (p *filterParser) chain(op string, depth int) (FilterNode, error) {
	operand := p.not
	if op == "||" {
		operand = func(d int) (FilterNode, error) { return p.chain("&&", d) }
	}
	first, err := operand(depth)
	if err != nil || !p.is(op) {
		return first, err
	}
	of := appendFlat(nil, op, first)
	for p.is(op) {
		if err := p.count(); err != nil {
			return nil, err
		}
		if err := p.next(); err != nil {
			return nil, err
		}
		k, err := operand(depth)
		if err != nil {
			return nil, err
		}
		of = appendFlat(of, op, k)
	}
	if op == "||" {
		return &FilterOr{Of: of}, nil
	}
	return &FilterAnd{Of: of}, nil
}

// appendFlat merges (a && b) && c into one list: the meaning is the same and clauses are counted singly.
func appendFlat(of []FilterNode, op string, k FilterNode) []FilterNode {
	switch k := k.(type) {
	case *FilterAnd:
		if op == "&&" {
			return append(of, k.Of...)
		}
	case *FilterOr:
		if op == "||" {
			return append(of, k.Of...)
		}
	}
	return append(of, k)
}

func (p *filterParser) not(depth int) (FilterNode, error) {
	if depth >= MaxFilterDepth {
		return nil, p.fail(fmt.Sprintf("parentheses and ! nest at most %d deep", MaxFilterDepth))
	}
	switch {
	case p.is("!"):
		if err := p.count(); err != nil {
			return nil, err
		}
		if err := p.next(); err != nil {
			return nil, err
		}
		paren := p.is("(") || p.is("!")
		k, err := p.not(depth + 1)
		if err != nil {
			return nil, err
		}
		// In CEL and expr ! binds tighter than a comparison, so !a >= b would be another thing there.
		if c, ok := k.(*FilterCompare); ok && !paren && !c.bare() {
			return nil, p.fail("put the comparison after ! in parentheses: !(" + c.String() + ")")
		}
		return &FilterNot{Of: k}, nil
	case p.is("("):
		if err := p.next(); err != nil {
			return nil, err
		}
		k, err := p.or(depth + 1)
		if err != nil {
			return nil, err
		}
		return k, p.expect(")", "to close the parenthesis, or && or ||")
	default:
		return p.clause()
	}
}

func (p *filterParser) clause() (FilterNode, error) {
	if err := p.count(); err != nil {
		return nil, err
	}
	switch p.tok.kind {
	case tokWord:
	case tokNumber, tokText:
		return nil, p.fail("a comparison begins with its field, as in gpu.vram_gb >= 40")
	default:
		return nil, p.fail("expected a field such as gpu.model, has_volume(..), label(..), ! or (")
	}
	column := p.tok.column
	if p.tok.raw == "has_volume" {
		return p.hasVolume(column)
	}
	term, err := p.term()
	if err != nil {
		return nil, err
	}
	n := &FilterCompare{Term: term, Column: column}
	if err := p.comparison(n); err != nil {
		return nil, err
	}
	return n, nil
}

func (p *filterParser) term() (FilterTerm, error) {
	name := p.tok.raw
	if name == "label" || name == "verified" {
		if err := p.next(); err != nil {
			return FilterTerm{}, err
		}
		if err := p.expect("(", "after "+name); err != nil {
			return FilterTerm{}, err
		}
		key, err := p.textArgument("the label's key", 32)
		if err != nil {
			return FilterTerm{}, err
		}
		f := FieldLabel
		if name == "verified" {
			f = FieldVerified
		}
		return FilterTerm{Field: f, Label: key}, p.expect(")", "after the label's key")
	}
	f, ok := fieldByName[name]
	if !ok {
		known := append(FilterFields(), "has_volume", "label", "verified")
		slices.Sort(known)
		return FilterTerm{}, p.fail("unknown field", nearest(name, known, 3)...)
	}
	return FilterTerm{Field: f}, p.next()
}

func (p *filterParser) textArgument(what string, limit int) (string, error) {
	if p.tok.kind != tokText {
		return "", p.fail("expected " + what + " in quotes")
	}
	s := p.tok.text
	if s == "" || len(s) > limit {
		return "", p.fail(fmt.Sprintf("%s has 1 to %d bytes", what, limit))
	}
	return s, p.next()
}

var filterOps = map[string]FilterOp{"==": OpEQ, "!=": OpNE, "<": OpLT, "<=": OpLE, ">": OpGT, ">=": OpGE}

func (p *filterParser) comparison(n *FilterCompare) error {
	kind := n.Term.Field.Kind()
	op, isOp := filterOps[p.tok.raw]
	switch {
	case p.tok.kind == tokSign && isOp:
		ordered := kind == KindNumber || kind == KindVersion
		if !ordered && op != OpEQ && op != OpNE {
			return p.fail(n.Term.String() + " has no order: compare it with ==, != or in [..]")
		}
		n.Op = op
		if err := p.next(); err != nil {
			return err
		}
		v, err := p.value(n.Term)
		n.Values = []FilterValue{v}
		return err
	case p.tok.kind == tokWord && p.tok.raw == "in":
		n.Op = OpIn
		if err := p.next(); err != nil {
			return err
		}
		return p.list(n)
	case kind == KindBool:
		n.Op, n.Values = OpEQ, []FilterValue{{Kind: KindBool, Bool: true}}
		return nil
	default:
		return p.fail("expected a comparison after " + n.Term.String() + ": ==, != or in [..], for numbers and versions also < <= > >=")
	}
}

func (p *filterParser) list(n *FilterCompare) error {
	if err := p.expect("[", "after in"); err != nil {
		return err
	}
	for {
		if len(n.Values) == MaxFilterList {
			return p.fail(fmt.Sprintf("a list has at most %d values", MaxFilterList))
		}
		v, err := p.value(n.Term)
		if err != nil {
			return err
		}
		n.Values = append(n.Values, v)
		if !p.is(",") {
			return p.expect("]", "or , after a value")
		}
		if err := p.next(); err != nil {
			return err
		}
	}
}

// value parses a literal and resolves it for the field.
func (p *filterParser) value(t FilterTerm) (FilterValue, error) {
	v, err := p.literal(t)
	if err != nil {
		return v, err
	}
	return v, p.next()
}

func (p *filterParser) literal(t FilterTerm) (FilterValue, error) {
	v := FilterValue{Kind: t.Field.Kind()}
	switch v.Kind {
	case KindNumber:
		if p.tok.kind != tokNumber {
			return v, p.fail(t.String() + " is a number, as in " + t.String() + " >= 8")
		}
		n, ok := parseDecimal(p.tok.raw)
		if !ok {
			return v, p.fail("a number is digits with at most one point and no unit")
		}
		v.Number = n
		return v, nil
	case KindBool:
		if p.tok.kind != tokWord || p.tok.raw != "true" && p.tok.raw != "false" {
			return v, p.fail(t.String() + " is true or false")
		}
		v.Bool = p.tok.raw == "true"
		return v, nil
	case KindVersion:
		return p.version(t)
	}
	if p.tok.kind != tokText {
		return v, p.fail(t.String() + ` is a text: put the value in quotes`)
	}
	if len(p.tok.text) > 128 {
		return v, p.fail("a text has at most 128 bytes")
	}
	return p.resolve(t, v)
}

// resolve gives a text literal the meaning of its field.
func (p *filterParser) resolve(t FilterTerm, v FilterValue) (FilterValue, error) {
	text := p.tok.text
	v.Text = text
	switch v.Kind {
	case KindLower:
		v.Text = strings.ToLower(text)
	case KindEnum:
		words := filterFields[t.Field].words
		i := slices.IndexFunc(words, func(w string) bool { return strings.EqualFold(w, text) })
		if i < 0 {
			return v, p.fail(t.String()+" is one of "+strings.Join(words, ", "), nearest(text, words, 3)...)
		}
		v.Text = words[i]
	case KindModel:
		set, err := ResolveGPU(text)
		if err != nil {
			return v, p.fail("unknown GPU name", nearestGPUs(text)...)
		}
		v.GPU, v.Text = set, set.Alias
	case KindPlace:
		place, err := ParsePlace(text)
		if err != nil {
			return v, p.fail("no region ("+strings.Join(Regions(), " ")+"), ISO country or subdivision", nearest(text, placeNames(), 3)...)
		}
		v.Place, v.Text = place, place.String()
	case KindCountry:
		place, err := ParsePlace(text)
		if err != nil || place.Country == "" || place.Subdivision != "" {
			return v, p.fail("no ISO country of two letters; regions go with node.region", nearest(text, placeNames(), 3)...)
		}
		v.Text = place.Country
	case KindPeer:
		id, err := peer.Decode(text)
		if err != nil {
			return v, p.fail("no peer ID")
		}
		v.Text = id.String()
	}
	return v, nil
}

func (p *filterParser) version(t FilterTerm) (FilterValue, error) {
	v := FilterValue{Kind: KindVersion}
	if p.tok.kind != tokWord || p.tok.raw != "version" {
		return v, p.fail(t.String() + ` is a version: write version("550.54")`)
	}
	if err := p.next(); err != nil {
		return v, err
	}
	if err := p.expect("(", "after version"); err != nil {
		return v, err
	}
	if p.tok.kind != tokText {
		return v, p.fail(`expected a version in quotes, as in version("550.54")`)
	}
	parts, ok := ParseVersion(p.tok.text)
	if !ok {
		return v, p.fail("a version is 1 to 4 numbers with points between them")
	}
	v.Text, v.Version = p.tok.text, parts
	if err := p.next(); err != nil {
		return v, err
	}
	if !p.is(")") {
		return v, p.fail("expected ) after the version")
	}
	return v, nil // the caller steps over )
}

// ParseVersion reads 1 to 4 numbers of at most 9 digits with points between them.
func ParseVersion(s string) ([]uint32, bool) {
	if len(s) > 40 {
		return nil, false
	}
	var out []uint32
	for part := range strings.SplitSeq(s, ".") {
		n, err := strconv.ParseUint(part, 10, 32)
		if err != nil || len(part) > 9 || part[0] == '+' || len(out) == 4 {
			return nil, false
		}
		out = append(out, uint32(n))
	}
	return out, true
}

// CompareVersions compares number by number; missing numbers are 0.
func CompareVersions(a, b []uint32) int {
	at := func(v []uint32, i int) uint32 {
		if i < len(v) {
			return v[i]
		}
		return 0
	}
	for i := range max(len(a), len(b)) {
		if x, y := at(a, i), at(b, i); x != y {
			if x < y {
				return -1
			}
			return 1
		}
	}
	return 0
}

// parseDecimal reads digits with at most one point: no exponent, hexadecimal, inf or nan.
func parseDecimal(s string) (float64, bool) {
	whole, frac, point := strings.Cut(s, ".")
	if whole == "" || point && frac == "" || len(s) > 24 {
		return 0, false
	}
	for _, c := range []byte(whole + frac) {
		if !isDigit(c) {
			return 0, false
		}
	}
	n, err := strconv.ParseFloat(s, 64)
	return n, err == nil
}

// hasVolume parses has_volume("cid", per-mille).
func (p *filterParser) hasVolume(column int) (FilterNode, error) {
	if err := p.next(); err != nil {
		return nil, err
	}
	if err := p.expect("(", "after has_volume"); err != nil {
		return nil, err
	}
	if p.tok.kind != tokText {
		return nil, p.fail(`expected the volume's CID in quotes, as in has_volume("bafy…", 800)`)
	}
	root, err := cid.Decode(p.tok.text)
	if err != nil || len(p.tok.text) > 128 {
		return nil, p.fail("no CID")
	}
	n := &FilterHasVolume{Root: root.Bytes(), Text: p.tok.text, Column: column}
	if err := p.next(); err != nil {
		return nil, err
	}
	if err := p.expect(",", "and the least share in per mille"); err != nil {
		return nil, err
	}
	share, ok := parseDecimal(p.tok.raw)
	if p.tok.kind != tokNumber || !ok || share != float64(int(share)) || share < 1 || share > 1000 {
		return nil, p.fail("the least share is a whole number of per mille, 1 to 1000")
	}
	n.PerMille = int(share)
	if err := p.next(); err != nil {
		return nil, err
	}
	return n, p.expect(")", "after the share")
}
