package corpus

import (
	"reflect"
	"testing"
)

func TestValuesAreThoseOfTheFuzzersFiles(t *testing.T) {
	for text, want := range map[string]any{
		`[]byte("\x01\xff a\t")`: []byte("\x01\xff a\t"), `string("(x)")`: "(x)", `string("")`: "", `bool(true)`: true, `bool(false)`: false,
	} {
		if got, err := value(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is read as %#v, %v; want %#v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", `string("a"`, `string(a)`, `int(1)`, `bool(maybe)`, `[]byte(1)`} {
		if got, err := value(text); err == nil {
			t.Errorf("%s is read as %#v", text, got)
		}
	}
}
