package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/beambridge/client"
	"github.com/gridbeam/gridbeam/protocol"
)

func volumeCommand() *cobra.Command {
	return group("volume", "Directories as content-addressed volumes", volumeImportCommand(), volumeListCommand(), volumeInfoCommand())
}

func volumeImportCommand() *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "import NAME DIR", Short: "Import a directory as a volume of the bridge", Args: exactArgs("NAME", "DIR"),
		Long: "Imports a directory as a volume of the bridge. Its CID is that of ipfs add --profile unixfs-v1-2025. A name that exists moves to the new content; jobs that run keep the old.",
		RunE: func(c *cobra.Command, args []string) error {
			if info, err := os.Stat(args[1]); err != nil || !info.IsDir() {
				return usagef("%s is no directory that can be read", args[1])
			}
			return withClient(c, func(ctx context.Context, api *client.Client) error {
				say := newProgress(c.ErrOrStderr(), out.json())
				defer say.done()
				v, err := api.PutVolume(ctx, args[0], args[1], say.transfer("of the directory"))
				if err != nil {
					return err
				}
				say.done()
				return out.object(c.OutOrStdout(), v, func(w io.Writer) { writeVolume(w, &v) })
			})
		},
	}
	out.flag(c, false)
	return apiFlags(c)
}

func writeVolume(w io.Writer, v *protocol.VolumeInfo) {
	_, _ = fmt.Fprintf(w, "%s  %s  %d files, %d bytes in %d blocks\n", printable(v.Name), v.CID, v.Files, v.Bytes, v.Blocks)
}

func volumeListCommand() *cobra.Command {
	var out output
	c := &cobra.Command{Use: "list", Short: "List the bridge's volumes", Args: exactArgs(), RunE: func(c *cobra.Command, _ []string) error {
		return withClient(c, func(ctx context.Context, api *client.Client) error {
			l, err := api.Volumes(ctx)
			if err != nil {
				return err
			}
			n := func(v uint64) string { return strconv.FormatUint(v, 10) }
			type info = protocol.VolumeInfo
			return list(&out, c.OutOrStdout(), l.Volumes, []column[info]{
				{"NAME", func(v *info) string { return v.Name }},
				{"CID", func(v *info) string { return v.CID }},
				{"FILES", func(v *info) string { return n(v.Files) }},
				{"BYTES", func(v *info) string { return n(v.Bytes) }},
				{"BLOCKS", func(v *info) string { return n(v.Blocks) }},
			})
		})
	}}
	out.flag(c, true)
	return apiFlags(c)
}

func volumeInfoCommand() *cobra.Command {
	var out output
	c := &cobra.Command{Use: "info NAME", Short: "One volume of the bridge", Args: exactArgs("NAME"), RunE: func(c *cobra.Command, args []string) error {
		return withClient(c, func(ctx context.Context, api *client.Client) error {
			v, err := api.Volume(ctx, args[0])
			if err != nil {
				return err
			}
			return out.object(c.OutOrStdout(), v, func(w io.Writer) { writeVolume(w, &v) })
		})
	}}
	out.flag(c, false)
	return apiFlags(c)
}

func reputationCommand() *cobra.Command {
	return group("reputation", "How the bridge rates nodes", reputationShowCommand(), reputationExplainCommand())
}

func reputationShowCommand() *cobra.Command {
	var out output
	c := &cobra.Command{Use: "show", Short: "Every node that the bridge knows, with its score", Args: exactArgs(), RunE: func(c *cobra.Command, _ []string) error {
		return withClient(c, func(ctx context.Context, api *client.Client) error {
			l, err := api.Nodes(ctx, "")
			if err != nil {
				return err
			}
			type info = protocol.NodeInfo
			return list(&out, c.OutOrStdout(), l.Nodes, []column[info]{
				{"PEER ID", func(n *info) string { return n.PeerID.String() }},
				{"STATE", func(n *info) string { return n.State }},
				{"STANDING", func(n *info) string { return n.Standing }},
				{"SCORE", func(n *info) string { return strconv.FormatFloat(n.Score, 'f', 4, 64) }},
				{"ASK", func(n *info) string { ask := uint64(max(0, n.AskUUSD)); return priceText(&ask) }},
			})
		})
	}}
	out.flag(c, true)
	return apiFlags(c)
}

func reputationExplainCommand() *cobra.Command {
	var out output
	c := &cobra.Command{Use: "explain PEER", Short: "Every part of a node's score, and what it takes to the next standing", Args: exactArgs("PEER"), RunE: func(c *cobra.Command, args []string) error {
		id, err := decodePeer(args[0])
		if err != nil {
			return usagef("%s", err)
		}
		return withClient(c, func(ctx context.Context, api *client.Client) error {
			r, err := api.Reputation(ctx, id)
			if err != nil {
				return err
			}
			return out.object(c.OutOrStdout(), r, func(w io.Writer) { writeReputation(w, &r) })
		})
	}}
	out.flag(c, false)
	return apiFlags(c)
}

func settlementCommand() *cobra.Command {
	return group("settlement", "Accounts and who is owed what", settlementCreditCommand(), settlementAccountCommand(), settlementReportCommand())
}

func settlementCreditCommand() *cobra.Command {
	var out output
	var user, source, ref string
	c := &cobra.Command{
		Use: "credit DOLLARS", Short: "Post a deposit or grant to a user's account", Args: exactArgs("DOLLARS"),
		RunE: func(c *cobra.Command, args []string) error {
			amount, err := protocol.ParseMoney(args[0])
			if err != nil || amount <= 0 {
				return usagef("DOLLARS is %q, want an amount above 0 such as 5.00", args[0])
			}
			if ref == "" {
				return usagef("say what it rests on: --ref TEXT; the same source and ref are posted once")
			}
			return withClient(c, func(ctx context.Context, api *client.Client) error {
				a, err := api.Credit(ctx, protocol.CreditRequest{User: user, AmountUUSD: int64(amount), Source: source, Ref: ref})
				if err != nil {
					return err
				}
				return out.object(c.OutOrStdout(), a, func(w io.Writer) { writeAccount(w, &a) })
			})
		},
	}
	c.Flags().StringVar(&user, "user", operatorUser, "whose account")
	c.Flags().StringVar(&source, "source", "grant/manual", "render, card, ach or grant/<program>")
	c.Flags().StringVar(&ref, "ref", "", "the payment or grant that it rests on")
	out.flag(c, false)
	return apiFlags(c)
}

func writeAccount(w io.Writer, a *protocol.Account) {
	_, _ = fmt.Fprintf(w, "%s has %s, %s reserved for running jobs, %s spent\n", printable(a.User), usd(a.CreditUUSD), usd(a.ReservedUUSD), usd(a.SpentUUSD))
}

func settlementAccountCommand() *cobra.Command {
	var out output
	c := &cobra.Command{Use: "account", Short: "This user's account", Args: exactArgs(), RunE: func(c *cobra.Command, _ []string) error {
		return withClient(c, func(ctx context.Context, api *client.Client) error {
			a, err := api.Account(ctx)
			if err != nil {
				return err
			}
			return out.object(c.OutOrStdout(), a, func(w io.Writer) { writeAccount(w, &a) })
		})
	}}
	out.flag(c, false)
	return apiFlags(c)
}

func settlementReportCommand() *cobra.Command {
	var out output
	return jobVerb("report", "What a job used and cost, node by node", &out, func(ctx context.Context, c *cobra.Command, api *client.Client, id protocol.JobID) error {
		s, err := api.Statement(ctx, id)
		if err != nil {
			return err
		}
		return out.object(c.OutOrStdout(), s, func(w io.Writer) { writeStatement(w, &s) })
	})
}

// writeStatement prints a statement; amounts of RENDER are shares of a nominal pool (rnp004).
func writeStatement(w io.Writer, s *protocol.Statement) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NODE\tCHUNKS\tRECORDS\tWORKING S\tBILLED S\tRATE/H\tBILL\tFEE\tBURN\tSHARE\tPOOL UNITS")
	for _, l := range append(append([]protocol.StatementLine{}, s.Lines...), s.Total) {
		name := "total"
		if l.Node != "" {
			name = shortID(l.Node.String())
		}
		_, _ = fmt.Fprintf(t, "%s\t%d\t%d\t%.3f\t%.3f\t%s\t%s\t%s\t%s\t%.4f %%\t%d\n", name, l.Chunks, l.Records, float64(l.WorkingMS)/1000, float64(l.BilledMS)/1000,
			usd(l.RateUUSD), usd(l.BillUUSD), usd(l.FeeUUSD), usd(l.BurnUUSD), float64(l.SharePPM)/10_000, l.ShareUnits)
	}
	_ = t.Flush()
}
