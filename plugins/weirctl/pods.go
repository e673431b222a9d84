package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy/report"
)

func podsCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "pods",
		Short: "Show the pods that weir attached on this node: container, addresses, link, policies, since when",
		Long: "Shows the pods that weir attached on this node, with container, addresses, link, MAC, and the policies\n" +
			"that isolate them. Without an agent it shows their endpoint records, and ? for policies.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			write := map[string]func(io.Writer, []report.PodStatus) error{
				"text": writePods, "json": writeJSON[[]report.PodStatus],
			}[output]
			if write == nil {
				return fmt.Errorf("-o %s: must be text or json", output)
			}
			s, err := fetch(cmd.Context())
			pods := []report.PodStatus{} // none is a list too
			if errors.Is(err, agentapi.ErrNoAgent) {
				pods, err = recorded()
			} else if err == nil {
				pods = s.Pods
			}
			return errors.Join(write(cmd.OutOrStdout(), pods), err)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// recorded are the pods whose records are on disk; the error says which of them can't be read.
func recorded() ([]report.PodStatus, error) {
	endpoints, err := endpoint.List()
	pods := []report.PodStatus{}
	for _, e := range endpoints {
		p := report.Pod(e)
		p.Ingress, p.Egress = "?", "?"
		pods = append(pods, p)
	}
	return pods, err
}

func writePods(out io.Writer, pods []report.PodStatus) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) } // Flush reports errors
	line("CONTAINER\tPOD\tADDRESSES\tLINK\tMAC\tINGRESS\tEGRESS\tSINCE")
	for _, p := range pods {
		line("%.13s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", p.ContainerID, p.Pod, strings.Join(p.Addresses, ","), p.HostIf, p.MAC,
			p.Ingress, p.Egress, p.Since.Local().Format(time.RFC3339))
	}
	return w.Flush()
}
