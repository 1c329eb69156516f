package beamwire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

var freeze = flag.Bool("freeze", false, "write the bytes of testdata/wire.txt anew")

const golden = "testdata/wire.txt"

// field is one field of a message as the table has it.
type field struct {
	name   string
	number protowire.Number
	kind   byte // of a value; 0 is a text
	many   bool
	dict   bool
	maybe  bool
	inner  []field
	nested bool
}

var head = regexp.MustCompile(`^([a-z_0-9]+)=([0-9]+)([biIuUfdyt*?m]*)`)

// parse reads fields up to the end or a closing brace and returns the rest.
func parse(t *testing.T, s string) (out []field, rest string) {
	t.Helper()
	for {
		s = strings.TrimLeft(s, " ")
		if s == "" || s[0] == '}' {
			return out, s
		}
		m := head.FindStringSubmatch(s)
		if m == nil {
			t.Fatalf("%q is no field", s)
		}
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		f := field{name: m[1], number: protowire.Number(n)}
		for _, mark := range []byte(m[3]) {
			switch mark {
			case '*':
				f.many = true
			case 'm':
				f.dict = true
			case '?':
				f.maybe = true
			default:
				f.kind = mark
			}
		}
		if s = s[len(m[0]):]; strings.HasPrefix(s, "{") {
			f.nested = true
			if f.inner, s = parse(t, s[1:]); !strings.HasPrefix(s, "}") {
				t.Fatalf("%q is not closed", f.name)
			}
			s = s[1:]
		}
		out = append(out, f)
	}
}

// The values that stand for a field follow from its number alone, and are the same for the encoder and the reader.
func text(f *field) string    { return fmt.Sprintf("t%d", f.number) }
func number(f *field) uint64  { return 300 + uint64(f.number) }
func float(f *field) float64  { return 0.5 + float64(f.number) }
func seconds(f *field) uint64 { return 1_700_000_000 + uint64(f.number) }

// write is an encoder by numbers alone.
func write(fields []field) (b []byte) {
	for i := range fields {
		f := &fields[i]
		switch value := value(f); {
		case f.dict:
			entry := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "key")
			entry = append(protowire.AppendTag(entry, 2, protowire.BytesType), value...)
			b = protowire.AppendBytes(protowire.AppendTag(b, f.number, protowire.BytesType), entry)
		case f.many && f.kind != 0: // numbers are packed
			_, n := protowire.ConsumeVarint(value)
			b = protowire.AppendBytes(protowire.AppendTag(b, f.number, protowire.BytesType), append(value[:n:n], value...))
		case f.many:
			for range 2 {
				b = append(protowire.AppendTag(b, f.number, protowire.BytesType), value...)
			}
		default:
			b = append(protowire.AppendTag(b, f.number, wireType(f)), value...)
		}
	}
	return b
}

func wireType(f *field) protowire.Type {
	switch {
	case f.nested || f.kind == 0 || f.kind == 'y' || f.kind == 't':
		return protowire.BytesType
	case f.kind == 'f':
		return protowire.Fixed32Type
	case f.kind == 'd':
		return protowire.Fixed64Type
	}
	return protowire.VarintType
}

// value is what follows the tag.
func value(f *field) []byte {
	switch {
	case f.nested:
		return protowire.AppendBytes(nil, write(f.inner))
	case f.kind == 0:
		return protowire.AppendString(nil, text(f))
	case f.kind == 'y':
		return protowire.AppendBytes(nil, []byte{0xff, byte(f.number)})
	case f.kind == 't':
		return protowire.AppendBytes(nil, protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), seconds(f)))
	case f.kind == 'f':
		return protowire.AppendFixed32(nil, math.Float32bits(float32(float(f))))
	case f.kind == 'd':
		return protowire.AppendFixed64(nil, math.Float64bits(float(f)))
	case f.kind == 'b':
		return protowire.AppendVarint(nil, 1)
	}
	return protowire.AppendVarint(nil, number(f))
}

var kinds = map[byte]protoreflect.Kind{
	0: protoreflect.StringKind, 'b': protoreflect.BoolKind, 'i': protoreflect.Int32Kind, 'I': protoreflect.Int64Kind, 'u': protoreflect.Uint32Kind, 'U': protoreflect.Uint64Kind,
	'f': protoreflect.FloatKind, 'd': protoreflect.DoubleKind, 'y': protoreflect.BytesKind, 't': protoreflect.MessageKind,
}

// compare tells where a message is not what the table says.
func compare(t *testing.T, where string, d protoreflect.MessageDescriptor, fields []field) {
	t.Helper()
	if d.Fields().Len() != len(fields) && d.FullName() != "gateway.SchemaField" { // which has itself in it
		t.Errorf("%s has %d fields, the table %d", where, d.Fields().Len(), len(fields))
	}
	for i := range fields {
		f := &fields[i]
		g := d.Fields().ByName(protoreflect.Name(f.name))
		if g == nil || g.Number() != f.number || g.IsList() != f.many || g.IsMap() != f.dict || g.HasOptionalKeyword() != f.maybe {
			t.Errorf("%s.%s is %v, the table has %+v", where, f.name, g, *f)
			continue
		}
		if f.dict {
			g = g.MapValue()
		}
		want := kinds[f.kind]
		if f.nested {
			want = protoreflect.MessageKind
			compare(t, where+"."+f.name, g.Message(), f.inner)
		}
		if g.Kind() != want || f.kind == 't' && g.Message().FullName() != "google.protobuf.Timestamp" {
			t.Errorf("%s.%s is a %s, the table has a %s", where, f.name, g.Kind(), want)
		}
	}
}

// TestMessagesAreThoseOfTheTable reads each message that was written by numbers alone, writes it again, and takes it
// through both spellings of JSON.
func TestMessagesAreThoseOfTheTable(t *testing.T) {
	raw, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	seen, last := map[protoreflect.FullName]bool{}, ""
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "="):
			if !*freeze && line != last {
				t.Errorf("the frozen bytes are\n%s, those of the table\n%s", line, last)
			}
			last = ""
			continue
		case line == "" || line[0] == '#':
			fmt.Fprintln(&out, line)
			continue
		}
		if last != "" && !*freeze {
			t.Errorf("%s stands where bytes are missing", line)
		}
		name, rest, _ := strings.Cut(line, " ")
		fields, rest := parse(t, rest)
		if rest != "" {
			t.Fatalf("%q is left of %s", rest, name)
		}
		mt, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		seen[mt.Descriptor().FullName()] = true
		compare(t, name, mt.Descriptor(), fields)
		b := write(fields)
		last = "=" + hex.EncodeToString(b)
		fmt.Fprintf(&out, "%s\n%s\n", line, last)
		bothWays(t, name, mt, b)
	}
	if last != "" && !*freeze {
		t.Error("the last message has no bytes")
	}
	if *freeze {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	everyMessage(t, seen)
}

// bothWays takes bytes through the message and JSON and wants the same bytes back.
func bothWays(t *testing.T, name string, mt protoreflect.MessageType, b []byte) {
	t.Helper()
	m := mt.New().Interface()
	if err := proto.Unmarshal(b, m); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("%s: %v\nwrites %x\nwant   %x", name, err, again, b)
	}
	for _, snake := range []bool{false, true} {
		js, err := protojson.MarshalOptions{UseProtoNames: snake, EmitUnpopulated: true}.Marshal(m)
		if err != nil || !json.Valid(js) {
			t.Errorf("%s: %v: %s", name, err, js)
			continue
		}
		back := mt.New().Interface()
		if err := protojson.Unmarshal(js, back); err != nil || !proto.Equal(m, back) {
			t.Errorf("%s: %v: %s", name, err, js)
		}
	}
}

// everyMessage complains about a request or an answer that the table lacks.
func everyMessage(t *testing.T, seen map[protoreflect.FullName]bool) {
	t.Helper()
	protoregistry.GlobalFiles.RangeFiles(func(fd protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(fd.Path(), "beamwire/") || fd.Package() == "beamhealth" {
			return true
		}
		for i := range fd.Messages().Len() {
			name := fd.Messages().Get(i).FullName()
			if s := string(name); (strings.HasSuffix(s, "Request") || strings.HasSuffix(s, "Response")) && !seen[name] {
				t.Errorf("%s is not in the table", name)
			}
		}
		return true
	})
}
