// Package stub fills mocks, for tests: a mock whose functions are fields panics when one is called that nobody has set.
package stub

import (
	"fmt"
	"reflect"
)

// Answer sets every function field of *mocked that is nil to one that returns answer wherever it has a result of answer's
// type, and zero values elsewhere. It panics when mocked is no pointer to a struct.
func Answer(mocked, answer any) {
	v := reflect.ValueOf(mocked)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("stub: %T is no pointer to a struct", mocked))
	}
	said := reflect.ValueOf(answer)
	for _, f := range v.Elem().Fields() {
		if f.Kind() != reflect.Func || !f.CanSet() || !f.IsNil() {
			continue
		}
		of := f.Type()
		f.Set(reflect.MakeFunc(of, func([]reflect.Value) []reflect.Value {
			out := make([]reflect.Value, of.NumOut())
			for i := range out {
				out[i] = reflect.Zero(of.Out(i))
				if of.Out(i) == said.Type() {
					out[i] = said
				}
			}
			return out
		}))
	}
}
