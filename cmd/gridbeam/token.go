package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/beambridge"
	"github.com/gridbeam/gridbeam/beambridge/client"
	"github.com/gridbeam/gridbeam/protocol"
)

// beamGateway is where Beam's clients find a bridge that says nothing else.
const beamGateway = "127.0.0.1:1993"

func tokenCommand() *cobra.Command {
	return group("token", "Tokens of the bridge's API and of Beam's gateway", tokenCreateCommand(), tokenListCommand(), tokenRevokeCommand())
}

func tokenCreateCommand() *cobra.Command {
	var req protocol.TokenRequest
	var scope, data string
	var out output
	c := &cobra.Command{
		Use: "create", Short: "Make a token and show it once", Args: exactArgs(),
		Long: `Makes a token and shows it, this once. With scope jobs it does all that Beam's clients do; with invoke it only calls functions that are there,
with read it only looks, with admin it also posts credit and acts for others. Nobody gives away more than its own token may.

With --data the token is made in the data directory of a bridge on this machine, which need not run; that takes the right to write there
and no other token.`,
		RunE: func(c *cobra.Command, _ []string) error {
			req.Scopes = []string{scope}
			if data != "" {
				dir, err := dataDir(c, "bridge")
				if err != nil {
					return err
				}
				if req.User == "" {
					req.User = operatorUser
				}
				t, err := beambridge.CreateToken(dir, req, time.Now())
				if errors.Is(err, beambridge.ErrConfig) {
					return withCode(exitUsage, err)
				}
				if err != nil {
					return err
				}
				return out.object(c.OutOrStdout(), t, func(w io.Writer) { writeToken(w, &t, beamGateway) })
			}
			return withClient(c, func(ctx context.Context, api *client.Client) error {
				st, err := api.Status(ctx) // first: a token whose text nobody saw is of no use
				if err != nil {
					return err
				}
				t, err := api.MakeToken(ctx, req)
				if err != nil {
					return err
				}
				return out.object(c.OutOrStdout(), t, func(w io.Writer) { writeToken(w, &t, gatewayAt(st.Beam, api.URL())) })
			})
		},
	}
	c.Flags().StringVar(&req.User, "user", "", "who acts by it (default: who makes it, so that both see the same volumes)")
	c.Flags().StringVar(&req.Name, "name", "", "what to call it")
	c.Flags().StringVar(&scope, "scope", "jobs", "jobs, invoke, read or admin")
	c.Flags().StringVar(&data, "data", "", "make it in this data directory of a bridge instead of over its API")
	out.flag(c, false)
	return apiFlags(c)
}

// gatewayAt is where Beam's clients find the gateway that a bridge says to have. One that listens on every address is
// at the host by which the bridge was reached.
func gatewayAt(beam, api string) string {
	host, port, err := net.SplitHostPort(beam)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if u, err := url.Parse(api); err == nil {
			host = u.Hostname()
		}
	}
	return net.JoinHostPort(host, port)
}

func writeToken(w io.Writer, t *protocol.NewToken, gateway string) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("token %s of %s, scope %s; it is shown this once", t.ID, printable(t.User), strings.Join(t.Scopes, ", "))
	host, port, err := net.SplitHostPort(gateway)
	if err != nil {
		p("\n%s\n", t.Text)
		p("This bridge has no gateway for Beam's clients: gridbeam bridge run --beam ADDRESS opens one.")
		return
	}
	p("\nFor Beam's clients:\n")
	p("export BETA9_GATEWAY_HOST=%s", host)
	p("export BETA9_GATEWAY_PORT=%s", port)
	p("export BETA9_TOKEN=%s", t.Text)
}

func tokenListCommand() *cobra.Command {
	var out output
	c := &cobra.Command{Use: "list", Short: "List tokens, without their text", Args: exactArgs(), RunE: func(c *cobra.Command, _ []string) error {
		return withClient(c, func(ctx context.Context, api *client.Client) error {
			l, err := api.Tokens(ctx)
			if err != nil {
				return err
			}
			type token = protocol.Token
			when := func(t time.Time) string {
				if t.IsZero() {
					return ""
				}
				return t.Local().Format(time.DateTime)
			}
			return list(&out, c.OutOrStdout(), l.Tokens, []column[token]{
				{"ID", func(t *token) string { return t.ID }},
				{"USER", func(t *token) string { return t.User }},
				{"NAME", func(t *token) string { return t.Name }},
				{"SCOPES", func(t *token) string { return strings.Join(t.Scopes, ",") }},
				{"CREATED", func(t *token) string { return when(t.Created) }},
				{"REVOKED", func(t *token) string { return when(t.Revoked) }},
			})
		})
	}}
	out.flag(c, true)
	return apiFlags(c)
}

func tokenRevokeCommand() *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "revoke ID", Short: "Take a token back at once", Args: exactArgs("ID"),
		Long: "Takes a token back: from this moment on it opens nothing. gridbeam bridge token list shows the IDs. A token with a higher scope than your own is an admin's to revoke.",
		RunE: func(c *cobra.Command, args []string) error {
			if strings.HasPrefix(args[0], "gb_") {
				return usagef("ID is a token's text; want the 12 hex digits that gridbeam bridge token list shows")
			}
			return withClient(c, func(ctx context.Context, api *client.Client) error {
				if err := api.RevokeToken(ctx, args[0]); err != nil {
					return err
				}
				v := struct {
					ID      string `json:"id"`
					Revoked bool   `json:"revoked"`
				}{args[0], true}
				return out.object(c.OutOrStdout(), v, func(w io.Writer) { _, _ = fmt.Fprintf(w, "token %s is revoked\n", args[0]) })
			})
		},
	}
	out.flag(c, false)
	return apiFlags(c)
}
