package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/policy/report"
)

func statusCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is enforced: faults, problems, policies, pods, classes and sets",
		Long: "Shows what is enforced on this node: faults (ERROR), problems, policies, pods, classes and sets.\n" +
			"It fails if the node isn't ready. Without an agent it shows the sets that the kernel still enforces, and fails.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			write := map[string]func(io.Writer, *report.Status) error{
				"text": writeText, "json": writeJSON[*report.Status],
			}[output]
			if write == nil {
				return fmt.Errorf("-o %s: must be text or json", output)
			}
			s, err := fetch(cmd.Context())
			if errors.Is(err, agentapi.ErrNoAgent) {
				s, err = fromKernel(err)
			}
			if err != nil {
				return err
			}
			if err := write(cmd.OutOrStdout(), s); err != nil {
				return fmt.Errorf("print the status: %w", err)
			}
			if !s.Ready {
				return errors.New("not ready: " + strings.Join(s.Errors, "; "))
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func fetch(ctx context.Context) (*report.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	question, err := agentapi.Ask(ctx, "GET", agentapi.StatusPath, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	status, answer, err := question.Answer()
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	s := &report.Status{}
	if err := json.Unmarshal(answer, s); err != nil {
		return nil, fmt.Errorf("read the agent's answer (%d): %w", status, err)
	}
	return s, nil
}

// fromKernel is what can be said without an agent: enforcement goes on with the sets and rules that it left.
func fromKernel(noAgent error) (*report.Status, error) {
	s := &report.Status{Errors: []string{noAgent.Error() + "; the kernel goes on enforcing what it holds"}}
	pods, err := recorded()
	if err != nil {
		s.Errors = append(s.Errors, err.Error())
	}
	s.Pods = pods
	sets, err := ipset.New()
	if err != nil {
		return nil, err
	}
	defer sets.Close()
	headers, err := sets.Headers()
	if err != nil {
		return nil, err
	}
	for _, h := range headers {
		set, err := sets.List(h.Name)
		if err != nil {
			return nil, err
		}
		s.Sets = append(s.Sets, report.SetStatus{Name: h.Name, Type: set.Type, Entries: len(set.Entries)})
	}
	return s, nil
}

func writeJSON[T any](w io.Writer, v T) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func writeText(out io.Writer, s *report.Status) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) } // Flush reports errors
	line("ready:\t%v", s.Ready)
	if !s.LastSync.IsZero() {
		line("last sync:\t%s (%s ago), iptables-%s", s.LastSync.Format(time.RFC3339),
			time.Since(s.LastSync).Round(time.Millisecond), s.IPTables)
		line("since start:\t%d changes, %d failures, %d repairs, %d connections cut", s.Stats.Changes, s.Stats.Failures,
			s.Stats.Repairs, s.Stats.Cut)
	}
	for _, e := range s.Errors {
		line("ERROR:\t%s", e)
	}
	for _, p := range s.Problems {
		line("PROBLEM:\t%s", report.OneLine(p.String()))
	}
	for _, u := range s.Unenforced {
		line("WARNING:\t%s", report.OneLine(u.String()))
	}
	if s.Stats.NodeRepairs > 0 {
		line("node repairs:\t%d since start, the last of them:", s.Stats.NodeRepairs)
	}
	for _, r := range s.NodeRepairs {
		line("REPAIRED:\t%s %s: %s (%s)", r.Time.Format(time.RFC3339), r.What, r.Was, r.Command)
	}
	line("policies:\t%s", strings.Join(s.Policies, ", "))
	for _, l := range report.Lines(s.Files) {
		line("%s", l)
	}
	line("\nPOD\tADDRESS\tLINK\tINGRESS\tEGRESS")
	for _, p := range s.Pods {
		line("%s\t%s\t%s\t%s\t%s", p.Pod, strings.Join(p.Addresses, ","), p.HostIf, p.Ingress, p.Egress)
	}
	if len(s.Classes) > 0 {
		line("\nCLASS\tDIRECTION\tPODS\tPOLICIES")
	}
	for _, c := range s.Classes {
		policies := strings.Join(c.Policies, ", ")
		if policies == "" {
			policies = "none: open"
		}
		line("%s\t%s\t%d\t%s", c.Set, c.Direction, len(c.Pods), policies)
	}
	line("\nSET\tTYPE\tENTRIES")
	for _, set := range s.Sets {
		line("%s\t%s\t%d", set.Name, set.Type, set.Entries)
	}
	return w.Flush()
}
