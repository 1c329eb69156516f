package stub

import (
	"errors"
	"testing"
)

type code int

func TestWhatNobodyHasSetAnswersAndWhatSomebodyHasStays(t *testing.T) {
	m := struct {
		Count  func(string) (int, code)
		Name   func() (string, code)
		Err    func() error
		Number int
	}{Name: func() (string, code) { return "set", 1 }}
	Answer(&m, code(3))
	if n, c := m.Count("x"); n != 0 || c != 3 {
		t.Errorf("it answers %d, %d", n, c)
	}
	if s, c := m.Name(); s != "set" || c != 1 {
		t.Errorf("what was set answers %q, %d", s, c)
	}
	if err := m.Err(); !errors.Is(err, nil) {
		t.Errorf("another type of result is %v", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a struct by value is taken, and nothing of it is filled")
		}
	}()
	Answer(m, code(3))
}
