package beamapi

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestFewLargeResultsAreJudgedAtOnceAndSmallOnesDoNotWaitForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most, judged atomic.Int64
		let := make(chan struct{})
		s, _ := newServer(t, func(c *Config) {
			c.Gate = func(b []byte, _ []string, _ bool) error {
				if len(b) > smallResult {
					most.Store(max(most.Load(), now.Add(1)))
					<-let
					now.Add(-1)
				}
				judged.Add(1)
				return nil
			}
		})
		s.judges = newJudges(2)
		large := make([]byte, smallResult+1)
		for range 20 {
			go func() {
				if text, err := s.judgeResult(t.Context(), &Stub{}, large); text != "" || err != nil {
					t.Errorf("%q, %v", text, err)
				}
			}()
		}
		synctest.Wait()
		if n := now.Load(); n != 2 {
			t.Fatalf("%d large results are judged at once, want 2", n)
		}
		for range 100 {
			if text, err := s.judgeResult(t.Context(), &Stub{}, []byte("small")); text != "" || err != nil {
				t.Fatalf("%q, %v", text, err)
			}
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.judgeResult(gone, &Stub{}, large); !errors.Is(err, context.Canceled) {
			t.Errorf("who is gone waits on: %v", err)
		}
		close(let)
		synctest.Wait()
		if judged.Load() != 120 || most.Load() != 2 {
			t.Errorf("%d were judged, %d large ones at once", judged.Load(), most.Load())
		}
	})
}
