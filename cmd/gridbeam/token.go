package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/beambridge/client"
	"github.com/gridbeam/gridbeam/protocol"
)

func tokenCommand() *cobra.Command {
	return group("token", "Tokens of the bridge's API and of Beam's gateway", tokenCreateCommand(), tokenListCommand(), tokenRevokeCommand())
}

func tokenCreateCommand() *cobra.Command {
	var req protocol.TokenRequest
	var scope string
	var out output
	c := &cobra.Command{
		Use: "create", Short: "Make a token and show it once", Args: exactArgs(),
		Long: "Makes a token and shows it, this once. With scope jobs it does all that Beam's clients do; with invoke it only calls functions that are there, with read it only looks.",
		RunE: func(c *cobra.Command, _ []string) error {
			req.Scopes = []string{scope}
			return withClient(c, func(ctx context.Context, api *client.Client) error {
				t, err := api.MakeToken(ctx, req)
				if err != nil {
					return err
				}
				st, err := api.Status(ctx)
				if err != nil {
					return err
				}
				return out.object(c.OutOrStdout(), t, func(w io.Writer) { writeToken(w, &t, st.Beam) })
			})
		},
	}
	c.Flags().StringVar(&req.User, "user", "", "who acts by it (default: who makes it, so that both see the same volumes)")
	c.Flags().StringVar(&req.Name, "name", "", "what to call it")
	c.Flags().StringVar(&scope, "scope", "jobs", "jobs, invoke, read or admin")
	out.flag(c, false)
	return apiFlags(c)
}

func writeToken(w io.Writer, t *protocol.NewToken, beam string) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("token %s of %s, scope %s; it is shown this once", t.ID, printable(t.User), strings.Join(t.Scopes, ", "))
	host, port, err := net.SplitHostPort(beam)
	if err != nil {
		p("\n%s", t.Text)
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
				{"USER", func(t *token) string { return printable(t.User) }},
				{"NAME", func(t *token) string { return printable(t.Name) }},
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
	return apiFlags(&cobra.Command{Use: "revoke ID", Short: "Take a token back at once", Args: exactArgs("ID"), RunE: func(c *cobra.Command, args []string) error {
		return withClient(c, func(ctx context.Context, api *client.Client) error {
			if err := api.RevokeToken(ctx, args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "token %s is revoked\n", args[0])
			return err
		})
	}})
}
