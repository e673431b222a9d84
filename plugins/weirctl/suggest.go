package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/suggest"
)

const suggestLong = `
Writes NetworkPolicies for a namespace from the flows that were recorded (weirctl flows): one that isolates all of its
pods in both directions, and one for each workload, which allows the connections that were seen, and nothing else. The
comments name these connections. Nothing is applied.

Pods that differ only in labels such as pod-template-hash are one workload. Addresses outside of the cluster become
ipBlocks of one address, which you can replace by larger networks. The policies deny connections that were not
recorded. So record for long enough to see nightly jobs, failovers and deployments. Before you enforce the policies,
look at weirctl diff -f, or audit them (docs/audit.md).

Exit codes:
  0  the policies were written
  1  the flows or the pods could not be read, or no flows were recorded
  2  the arguments are wrong, or the namespace has neither pods nor flows`

const suggestExample = `  kubectl weir flows --record 24h
  kubectl weir suggest -n shop --since 24h > shop.yaml
  weirctl diff -f shop.yaml
  weirctl suggest -n shop --flows flows.json --source dir:manifests/   # from files`

func suggestCommand() *cobra.Command {
	var f flowsFlags
	var namespace, file string
	cmd := &cobra.Command{
		Use: "suggest -n NAMESPACE", Short: "Write NetworkPolicies that allow the connections that were seen",
		Long: suggestLong[1:], Example: suggestExample,
		Args: client.NoArgs,
		RunE: interruptible(func(cmd *cobra.Command, _ []string) error {
			switch {
			case namespace == "":
				return client.Usage(errors.New("name the namespace: -n NAMESPACE"))
			case f.since > 0 && file != "":
				return client.Usage(errors.New("--since and --flows exclude each other: weirctl flows --since 1h -o json writes " +
					"only the newer flows"))
			}
			recorded, err := f.recorded(cmd, file)
			if err != nil {
				return err
			}
			c, err := f.nodes.Load(cmd.Context(), namespace)
			if err != nil {
				return err
			}
			flows, notes := seenFlows(recorded, c.Pods)
			notes = append(notes, notRecorded(namespace, recorded, c.Pods)...)
			about := func(e suggest.End) bool { return e.Namespace == namespace }
			if !slices.ContainsFunc(c.Pods, func(p policy.Pod) bool { return p.Namespace == namespace }) &&
				!slices.ContainsFunc(flows, func(f suggest.Flow) bool { return about(f.From) || about(f.To) }) {
				return client.Usage(fmt.Errorf("the namespace %q has neither pods nor flows", namespace))
			}
			result := suggest.Policies(namespace, c.Pods, flows)
			return printSuggestions(cmd.OutOrStdout(), result, append(notes, c.Gaps...))
		}),
	}
	f.addFlags(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "the namespace of the policies")
	cmd.Flags().StringVar(&file, "flows", "", "take the flows from this file, which weirctl flows -o json has written")
	cmd.Flags().StringVar(&f.nodes.Place, "source", "",
		"where pods come from: agent, kubernetes or dir:PATH; default: the agent if one is on this node, else the API server")
	f.nodes.CompleteFlags(cmd)
	return cmd
}

func (f *flowsFlags) recorded(cmd *cobra.Command, file string) (all []agentapi.Flows, err error) {
	if file == "" {
		if all, err = f.ask(cmd.Context(), nil); err != nil {
			return nil, err // without a node's flows, the policies would deny connections of this node
		}
	} else {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			return nil, client.Usage(fmt.Errorf("--flows %s: there is no such file", file))
		}
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &all); err != nil {
			return nil, fmt.Errorf("%s: it has no flows as weirctl flows -o json writes them: %w", file, err)
		}
	}
	if !slices.ContainsFunc(all, func(f agentapi.Flows) bool { return !f.Since.IsZero() }) {
		return nil, errNothingRecorded
	}
	if !slices.ContainsFunc(all, func(f agentapi.Flows) bool { return len(f.Flows) > 0 }) {
		return nil, errors.New("no flow was seen in this time, so the policies would deny everything: record for longer")
	}
	return all, nil
}

// seenFlows returns the flows of all nodes. A flow between two nodes is in the list twice, because both nodes record
// it. notes say what is missing.
func seenFlows(recorded []agentapi.Flows, pods []policy.Pod) (flows []suggest.Flow, notes []string) {
	labels := map[string]map[string]string{}
	for i := range pods {
		labels[pods[i].Namespace+"/"+pods[i].Name] = pods[i].Labels
	}
	uncertain := 0
	for _, n := range recorded {
		notes = append(notes, gaps(n)...)
		for _, f := range n.Flows {
			from, ok := endOf(f.Source, labels)
			to, also := endOf(f.Destination, labels)
			if !ok || !also {
				uncertain++
				continue
			}
			flows = append(flows, suggest.Flow{
				From: from, To: to, Protocol: ruleset.Protocol(f.Protocol), Port: f.Port,
				Count: f.Count, First: f.First, Last: f.Last,
			})
		}
	}
	if uncertain > 0 {
		notes = append(notes, fmt.Sprintf("%d flows are left out, because it is uncertain which pods they are of", uncertain))
	}
	slices.SortStableFunc(flows, func(a, b suggest.Flow) int { return cmp.Compare(b.Count, a.Count) })
	return flows, notes
}

// notRecorded returns a note about nodes that have pods of the namespace, but were not asked for flows or have not
// recorded them. The suggested policies would deny connections that these pods need.
func notRecorded(namespace string, recorded []agentapi.Flows, pods []policy.Pod) (notes []string) {
	nodes := map[string]bool{"": true, explain.NoNode: true} // a pod of a manifest may have no node
	for _, f := range recorded {
		nodes[f.Node] = nodes[f.Node] || !f.Since.IsZero()
	}
	missing := map[string]bool{}
	count := 0
	for i := range pods {
		if p := &pods[i]; p.Namespace == namespace && !p.HostNetwork && !p.Finished && !nodes[p.NodeName] {
			missing[p.NodeName], count = true, count+1
		}
	}
	if count > 0 {
		notes = append(notes, fmt.Sprintf("there are no flows of %d pods of the namespace, on nodes that were not asked or "+
			"have not recorded: %s", count, excerpt.List(slices.Sorted(maps.Keys(missing)), ", ")))
	}
	return notes
}

func endOf(e agentapi.FlowEnd, labels map[string]map[string]string) (suggest.End, bool) {
	end := suggest.End{Address: e.Address, Node: e.Node, Labels: e.Labels}
	if e.Pod == "" {
		return end, e.Address.IsValid()
	}
	var ok bool
	end.Namespace, end.Name, ok = strings.Cut(e.Pod, "/")
	if end.Labels == nil { // the agent didn't know the pod yet when it recorded the flow
		if end.Labels, ok = labels[e.Pod]; end.Labels == nil {
			end.Labels = map[string]string{}
		}
	}
	return end, ok && !strings.Contains(e.Pod, ",")
}

const maxEvidence = 5

func printSuggestions(out io.Writer, r suggest.Result, notes []string) error {
	var b strings.Builder
	comment := func(format string, args ...any) {
		text := excerpt.Printable(fmt.Sprintf(format, args...))
		b.WriteString("# " + strings.ReplaceAll(text, "\n", "?") + "\n")
	}
	comment("Policies that weirctl suggest has written. They allow the connections that were seen, and deny all others.")
	for _, n := range notes {
		comment("NOTE: %s", excerpt.Of(n))
	}
	for _, f := range r.Left {
		comment("NOTE: only a rule without ports can allow this, and it allows all ports, so these policies drop it: %s",
			evidence(f))
	}
	for _, s := range r.Suggestions {
		b.WriteString("---\n")
		for _, d := range []struct {
			field string
			rules [][]suggest.Flow
		}{{"ingress", s.Ingress}, {"egress", s.Egress}} {
			for i, flows := range d.rules {
				for _, f := range flows[:min(len(flows), maxEvidence)] {
					comment("%s[%d]: %s", d.field, i, evidence(f))
				}
				if more := len(flows) - maxEvidence; more > 0 {
					comment("%s[%d]: and %d more", d.field, i, more)
				}
			}
		}
		text, err := policyYAML(s.Policy)
		if err != nil {
			return err
		}
		b.WriteString(excerpt.Printable(string(text)))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func evidence(f suggest.Flow) string {
	port := ""
	if f.Port != 0 {
		port = fmt.Sprint(" port ", f.Port)
	}
	times := f.First.UTC().Format("2006-01-02 15:04")
	if last := f.Last.UTC().Format("2006-01-02 15:04"); last != times {
		times += " to " + last
	}
	count := "once"
	if f.Count != 1 {
		count = fmt.Sprint(f.Count, " times")
	}
	return fmt.Sprintf("%s to %s, %s%s, %s, %s UTC", f.From, f.To, strings.ToUpper(string(f.Protocol)), port, count,
		strings.TrimSpace(times))
}

func policyYAML(np *networkingv1.NetworkPolicy) ([]byte, error) {
	text, err := json.Marshal(np)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, err
	}
	if meta, ok := fields["metadata"].(map[string]any); ok {
		delete(meta, "creationTimestamp")
	}
	return yaml.Marshal(fields)
}
