package beambridge

import (
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestATrackerEndsRunsThatTakeLongerThanTheJobsTermsAllow(t *testing.T) {
	for terms, want := range map[time.Duration]time.Duration{10 * time.Second: 10 * time.Second, 0: 24 * time.Hour, 48 * time.Hour: 48 * time.Hour} {
		j := &job{spec: protocol.Job{}.WithDefaults(), terms: protocol.JobTerms{Limits: protocol.Limits{Wall: terms}}}
		c := (&engine{paces: newPaces()}).trackerConfig(j)
		if err := c.Validate(); c.Limit != want || err != nil {
			t.Errorf("policy.timeout %s gives the limit %s (%v), want %s", terms, c.Limit, err, want)
		}
	}
}
