package beamapi

import (
	"context"
	"fmt"
)

const (
	// smallResult is the size in bytes up to which a result is judged beside many others: judging it takes a few megabytes.
	smallResult = 64 << 10
	// smallJudges is how many small ones a processor judges at once.
	smallJudges = 16
)

// judges bounds how many results are judged at once, since a hostile one of 15 MiB takes some hundred megabytes while it is
// looked at. Large ones do not keep small ones waiting.
type judges struct{ small, large chan struct{} }

func newJudges(processors int) judges {
	return judges{small: make(chan struct{}, smallJudges*processors), large: make(chan struct{}, processors)}
}

// sit waits for a place for a result of n bytes and returns what gives it back, or ctx's error.
func (j judges) sit(ctx context.Context, n int) (func(), error) {
	seats := j.small
	if n > smallResult {
		seats = j.large
	}
	select {
	case seats <- struct{}{}:
		return func() { <-seats }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("the result waits to be judged: %w", ctx.Err())
	}
}

// judgeResult says why a result must not go to its client, which would unpickle it; empty for a good one. It returns
// ctx's error when that ends before there is a place to judge it.
func (s *Server) judgeResult(ctx context.Context, stub *Stub, result []byte) (string, error) {
	if len(result) > maxResult {
		return fmt.Sprintf("gridbeam: the result has %d bytes, at most %d fit; write it to a volume\n", len(result), maxResult), nil
	}
	if !stub.ResultAny {
		leave, err := s.judges.sit(ctx, len(result))
		if err != nil {
			return "", err
		}
		defer leave()
	}
	if err := s.cfg.Gate(result, stub.ResultAllow, stub.ResultAny); err != nil {
		return "gridbeam: " + err.Error() + "\n", nil
	}
	return "", nil
}
