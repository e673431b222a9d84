package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/plugins/weirctl/nodecheck"
)

type nodeReport struct {
	Findings []nodecheck.Finding `json:"findings"`
	Facts    nodecheck.Facts     `json:"facts"`
}

func checkNode(cmd *cobra.Command, format client.Format) error {
	r := nodeReport{Facts: nodecheck.Read(cmd.Context())}
	r.Findings = nodecheck.Findings(r.Facts)
	out := cmd.OutOrStdout()
	if format == client.JSON {
		if err := client.PrintJSON(out, r); err != nil {
			return err
		}
	}
	broken, unknown := 0, 0
	for _, f := range r.Findings {
		switch f.Severity {
		case nodecheck.Broken:
			broken++
		case nodecheck.Unknown:
			unknown++
		}
		line := f.What
		if f.Mend != "" {
			line += " -- to mend it: " + f.Mend
		}
		if format == client.Text {
			if _, err := fmt.Fprintf(out, "%-7s  %s\n", f.Severity, agentapi.OneLine(line)); err != nil {
				return err
			}
		}
	}
	switch {
	case broken > 0:
		first := r.Findings[0].What
		return client.Exit(client.ExitBroken, fmt.Errorf("broken on this node: %d; the first: %s", broken, first))
	case unknown > 0:
		return errors.New("not all could be found out")
	}
	return nil
}
