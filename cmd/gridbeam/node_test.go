package main

import (
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node"
)

func TestStatusDoesNotTakeServersForThoseThatKeepTheRecord(t *testing.T) {
	for want, s := range map[string]node.Status{
		"2 servers of the directory are known; its record is not stored yet": {Directory: 2},
		"1 server of the directory is known; 7 of the 20 nearest took its record 3s ago": {
			Directory: 1, Stored: &node.StoredStatus{At: time.Now().Add(-3 * time.Second), Asked: 20, Took: 7},
		},
	} {
		if got := directoryText(&s); !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
