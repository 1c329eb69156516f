package node

import (
	"testing"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// A bridge says that a job is over, and then takes the last of its results.
func TestAResultThatIsTakenAfterItsJobHasEndedCountsOnce(t *testing.T) {
	b := &book{leases: map[protocol.LeaseID]*lease{}}
	x := &lease{end: &ending{}}
	x.ID = protocol.LeaseID{7}
	x.end.result.Outcome.Reason = protocol.ReasonDone
	l := &link{book: b}
	for range 2 {
		l.acks(&parcel{leases: []*lease{x}}, &pb.ResultReply{Acks: []*pb.ResultAck{{LeaseId: x.ID[:], Verdict: pb.Verdict_VERDICT_ACCOUNTED}}})
	}
	if b.done != 1 || b.failed != 0 {
		t.Errorf("%d done, %d failed; want 1 and 0", b.done, b.failed)
	}
}
