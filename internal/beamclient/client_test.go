package beamclient

import (
	"strings"
	"testing"
)

func TestHandWrittenPicklesAreRead(t *testing.T) {
	for _, n := range []string{"K\x05.", "\x80\x04K\x05.", "\x80\x04\x95\x03\x00\x00\x00\x00\x00\x00\x00K\x05."} {
		if got, err := PickledInt([]byte(n)); got != 5 || err != nil {
			t.Errorf("%x: %d, %v", n, got, err)
		}
	}
	if _, err := PickledInt([]byte("\x80\x04N.")); err == nil {
		t.Error("None passed for a number")
	}
	if !strings.Contains(string(PickleText("x")), "args") {
		t.Error("no args")
	}
}
