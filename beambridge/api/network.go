package api

import (
	"net/http"
	"regexp"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
)

// status answers at once, so that a client can tell a bridge that is there from one that is busy.
func (s *Server) status(c *call) error {
	st, err := s.bridge.System.Status(c.r.Context())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, st)
}

func (s *Server) listNodes(c *call) error {
	v, err := c.query("where")
	if err != nil {
		return err
	}
	var where *protocol.Filter
	if len(v["where"]) > 0 && v["where"][0] != "" {
		if where, err = protocol.ParseFilter(v["where"][0]); err != nil {
			return badRequest("where", "", "%s", err)
		}
	}
	list, err := s.bridge.Nodes.ListNodes(c.r.Context(), c.who, where)
	if err != nil {
		return err
	}
	if list.Nodes == nil {
		list.Nodes = []protocol.NodeInfo{}
	}
	return c.json(http.StatusOK, list)
}

func (s *Server) reputation(c *call) error {
	id, err := peer.Decode(c.r.PathValue("peer"))
	if err != nil {
		return badRequest("peer", "copy it from `gridbeam nodes`", "%.80q is no peer ID", c.r.PathValue("peer"))
	}
	c.object = id.String()
	rep, err := s.bridge.Nodes.Reputation(c.r.Context(), c.who, id)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, rep)
}

func (s *Server) account(c *call) error {
	a, err := s.bridge.Money.Account(c.r.Context(), c.who)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, a)
}

var (
	creditSource = regexp.MustCompile(`^(render|card|ach|grant/[A-Za-z0-9._-]{1,64})$`)
	creditRef    = regexp.MustCompile(`^[!-~]{1,128}$`)
)

// maxCredit bounds one posting: a billion dollars, in micro-USD.
const maxCredit = 1e15

func (s *Server) credit(c *call) error {
	var req protocol.CreditRequest
	if err := s.decode(c, s.cfg.JSONBytes, &req); err != nil {
		return err
	}
	c.object = req.User
	if err := protocol.CheckUser(req.User); err != nil {
		return err
	}
	switch {
	case req.AmountUUSD < 1 || req.AmountUUSD > maxCredit:
		return badRequest("amount_uusd", "use micro-USD: 5000000 is 5 US dollars", "%d is not within 1 and %d", req.AmountUUSD, int64(maxCredit))
	case !creditSource.MatchString(req.Source):
		return badRequest("source", "use render, card, ach or grant/PROGRAM", "%.80q is no source of credit", req.Source)
	case !creditRef.MatchString(req.Ref):
		return badRequest("ref", "name the payment or grant, 1 to 128 signs without spaces", "%.80q is no reference", req.Ref)
	}
	a, err := s.bridge.Money.Credit(c.r.Context(), c.who, req)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, a)
}
