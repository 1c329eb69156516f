package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestMachinesFollowTheirGoldenTraces replays testdata/machines.txt: "job" or "attempt", a first state, then
// event>state steps; a step to ! has to be refused.
func TestMachinesFollowTheirGoldenTraces(t *testing.T) {
	f, err := os.Open("testdata/machines.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	jobs, attempts := map[jobKey]bool{}, map[attemptKey]bool{}
	for sc, line := bufio.NewScanner(f), 1; sc.Scan(); line++ {
		w := strings.Fields(sc.Text())
		if len(w) == 0 || w[0] == "#" {
			continue
		}
		state := w[1]
		for _, step := range w[2:] {
			event, want, _ := strings.Cut(step, ">")
			var next string
			var err error
			if w[0] == "job" {
				var n JobState
				n, err = JobState(state).Next(JobEvent(event))
				next = string(n)
				jobs[jobKey{JobState(state), JobEvent(event)}] = true
			} else {
				var n AttemptState
				n, err = AttemptState(state).Next(AttemptEvent(event))
				next = string(n)
				attempts[attemptKey{AttemptState(state), AttemptEvent(event)}] = true
			}
			if want == "!" {
				if !errors.Is(err, ErrBadTransition) || next != state {
					t.Errorf("line %d: %s in %s gives %s, %v; want ErrBadTransition", line, event, state, next, err)
				}
				continue
			}
			if err != nil || next != want {
				t.Errorf("line %d: %s in %s gives %s, %v; want %s", line, event, state, next, err, want)
			}
			state = next
		}
	}
	for k := range jobTable {
		if !jobs[k] {
			t.Errorf("no trace shows job %s taking %s", k.state, k.event)
		}
	}
	for k := range attemptTable {
		if !attempts[k] {
			t.Errorf("no trace shows attempt %s taking %s", k.state, k.event)
		}
	}
}

// TestFinalStatesAreFinal and every state but the first can be reached.
func TestFinalStatesAreFinal(t *testing.T) {
	reached := map[string]bool{}
	for k, n := range jobTable {
		if k.state.Final() {
			t.Errorf("job %s is final but takes %s", k.state, k.event)
		}
		reached["job "+string(n)] = true
	}
	for k, n := range attemptTable {
		switch k.state {
		case AttemptDone, AttemptFailed, AttemptLost, AttemptCancelled:
			t.Errorf("attempt %s is final but takes %s", k.state, k.event)
		}
		reached["attempt "+string(n)] = true
	}
	for _, s := range []JobState{JobSelecting, JobRunning, JobWaiting, JobDone, JobFailed, JobCancelled} {
		if !reached["job "+string(s)] {
			t.Errorf("job %s is never reached", s)
		}
	}
	if len(reached) != 6+10 {
		t.Error(fmt.Sprint("attempts reach other states than the ten after announced: ", reached))
	}
}
