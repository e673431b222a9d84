package main

import (
	"fmt"
	"io"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/plugins/weirctl/chart"
	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/policy/reach"
	"github.com/weir-net/weir/policy/ruleset"
)

type narrow struct {
	namespaces []string
	from, to   string
	port       string
	rows       int
}

func (n *narrow) addFlags(flags *pflag.FlagSet) {
	flags.StringSliceVarP(&n.namespaces, "namespace", "n", nil, "only connections from or to pods of this namespace")
	flags.StringVar(&n.from, "from", "",
		"only connections from these: NS/NAME of pods, workloads or a Service, with * for any text; an address of a pod, "+
			"a Service or another host; or world")
	flags.StringVar(&n.to, "to", "", "only connections to these: as --from")
	flags.StringVar(&n.port, "port", "",
		"only connections on these ports of pods: 80, 8000-8080, 53/udp; without a protocol: TCP")
	flags.IntVar(&n.rows, "rows", 100, "how many rows the table has; 0 for all")
}

func (n *narrow) filter() (f reach.Filter, err error) {
	if len(n.namespaces) > 0 {
		f.Either = func(p reach.Party) bool { return slices.Contains(n.namespaces, p.Namespace) }
	}
	if f.From, err = parties("--from", n.from); err != nil {
		return f, err
	}
	if f.To, err = parties("--to", n.to); err != nil {
		return f, err
	}
	if n.rows < 0 {
		return f, client.Usage(fmt.Errorf("--rows %d: must be a number of rows, or 0 for all", n.rows))
	}
	if n.port != "" {
		if f.Proto, f.Ports, err = portRange(n.port); err != nil {
			return f, err
		}
	}
	return f, nil
}

// resolve replaces a Service's address by the Service's name, because no pod has the address. An address that several
// Services share is a usage error. An address of a node stays, and a note names the Services that have this address. If
// the source knows no Services, the notes name each address that may be a Service's.
func (n *narrow) resolve(c explain.Cluster) (f reach.Filter, notes []string, err error) {
	for _, text := range []*string{&n.from, &n.to} {
		a, err := netip.ParseAddr(*text)
		if err != nil {
			continue
		}
		var names []string
		for _, s := range c.Services {
			if s.Has(a.Unmap()) {
				names = append(names, s.String())
			}
		}
		isNode := slices.ContainsFunc(c.Nodes, func(n policy.Node) bool { return slices.Contains(n.Addresses, a.Unmap()) })
		if isNode && text == &n.from {
			notes = append(notes, fmt.Sprintf("packets from the node with %s to its own pods aren't checked, and the rows "+
				"don't show them", a))
		}
		switch services := excerpt.List(names, ", "); {
		case len(names) > 0 && isNode:
			notes = append(notes, fmt.Sprintf("%s is an address of a node, and also leads to %s: ask about a Service by its "+
				"name", a, services))
		case len(names) == 1:
			*text = names[0]
		case len(names) > 1:
			return f, nil, client.Usage(fmt.Errorf("%s is the address of several Services: name one of %s", a, services))
		case c.Node != "" && len(c.Services) == 0:
			notes = append(notes, fmt.Sprintf("the agent knows no Services, so %s may be the address of one: ask with "+
				"--source kubernetes", a))
		}
	}
	f, err = n.filter()
	return f, notes, err
}

// check refuses a name or an address in --from or --to that fits no pod, workload or Service. Without this check, the
// matrix would be empty, as if nothing could connect.
func (n *narrow) check(m *reach.Matrix, f reach.Filter) error {
	for _, end := range []struct {
		flag, text string
		is         func(reach.Party) bool
	}{{"--from", n.from, f.From}, {"--to", n.to, f.To}} {
		if end.is == nil || slices.ContainsFunc(m.Parties, end.is) {
			continue
		}
		why := "no pod, no workload and no Service with pods has this name. Pods with hostNetwork count as their node's " +
			"address"
		if !strings.Contains(end.text, "/") {
			why = "it is in a pods' network, or of a family that no pod has, and no pod has it"
		}
		why += explain.NearNames(end.text, partyNames(m))
		return client.Usage(fmt.Errorf("%s %s: %s", end.flag, end.text, why))
	}
	return nil
}

func partyNames(m *reach.Matrix) (names []string) {
	for _, p := range m.Parties {
		names = append(names, p.Name)
		for _, pod := range p.Pods {
			names = append(names, p.Namespace+"/"+pod)
		}
		for _, s := range p.Services {
			names = append(names, s.Service)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// parties returns a function that reports whether the flag's text means a party: a sender or receiver in the
// matrix. For an empty text, parties returns nil, which stands for all parties.
func parties(flag, text string) (func(reach.Party) bool, error) {
	a, err := netip.ParseAddr(text)
	switch {
	case text == "":
		return nil, nil
	case text == "world":
		return func(p reach.Party) bool { return p.Kind == reach.World }, nil
	case err == nil:
		return func(p reach.Party) bool { return p.Has(a.Unmap()) }, nil
	}
	if _, err := path.Match(text, ""); err != nil || strings.Count(text, "/") != 1 {
		return nil, client.Usage(fmt.Errorf("%s %q: must be NS/NAME, with * for any text, an address, or world", flag, text))
	}
	return func(p reach.Party) bool {
		matches := func(name string) bool {
			ok, _ := path.Match(text, name)
			return ok
		}
		return p.Kind == reach.Pods && (matches(p.Name) ||
			slices.ContainsFunc(p.Pods, func(pod string) bool { return matches(p.Namespace + "/" + pod) }) ||
			slices.ContainsFunc(p.Services, func(s reach.ServicePort) bool { return matches(s.Service) }))
	}, nil
}

func portRange(text string) (proto ruleset.Protocol, r ruleset.PortRange, err error) {
	numbers, word, _ := strings.Cut(text, "/")
	proto = ruleset.Protocol(strings.ToLower(word))
	if word == "" {
		proto = ruleset.TCP
	}
	first, last, isRange := strings.Cut(numbers, "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	known := slices.Contains([]ruleset.Protocol{ruleset.TCP, ruleset.UDP, ruleset.SCTP}, proto)
	if errA != nil || errB != nil || a < 1 || a > b || !known {
		return "", r, client.Usage(fmt.Errorf("--port %q: must be a port or a range from 1 to 65535, "+
			"with /tcp, /udp or /sctp if it isn't TCP: 80, 8000-8080 or 53/udp", text))
	}
	return proto, ruleset.PortRange{First: uint16(a), Last: uint16(b)}, nil
}

func (n *narrow) title() string {
	title := "the cluster"
	if len(n.namespaces) > 0 {
		title = "namespace " + strings.Join(n.namespaces, ", ")
	}
	for _, part := range []struct{ word, text string }{{"from", n.from}, {"to", n.to}, {"port", n.port}} {
		if part.text != "" {
			title += ", " + part.word + " " + part.text
		}
	}
	return title
}

var formats = map[string]func(io.Writer, chart.View) error{
	"text": chart.Table, "json": chart.JSON, "html": chart.HTML, "svg": chart.SVG, "dot": chart.Dot,
}

func matrixCommand() *cobra.Command {
	var source client.Source
	var narrow narrow
	var output string
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "Show who can reach whom: pods, Services and the world",
		Long: "Shows which connections NetworkPolicies allow between pods, and between pods and the world. Pods that no\n" +
			"policy can tell apart are one group. All ports, protocols and addresses are covered: see docs/matrix.md.",
		Example: `  weirctl matrix                                    # the whole cluster, as a table
  weirctl matrix -n shop                            # connections from or to pods of one namespace
  weirctl matrix --to shop/db-* --port 5432         # who reaches the databases
  weirctl matrix --from world                       # what is open to the world
  weirctl matrix -o html > matrix.html              # a page with filters and a graph, for a browser
  weirctl matrix -n shop -o dot | dot -Tpng > m.png # a graph, drawn by Graphviz
  weirctl matrix --source dir:manifests/            # what the manifests of a directory mean, without a cluster`,
		Args: client.NoArgs,
		RunE: interruptible(func(cmd *cobra.Command, _ []string) error {
			print, ok := formats[output]
			if !ok {
				return client.Usage(fmt.Errorf("-o %s: must be text, json, html, svg or dot", output))
			}
			if _, err := narrow.filter(); err != nil {
				return err
			}
			c, unknown, err := load(cmd, &source, narrow.namespaces, nil)
			if err != nil {
				return err
			}
			filter, more, err := narrow.resolve(c)
			if err != nil {
				return err
			}
			m := reach.New(c.State(), c.Services)
			if err := narrow.check(m, filter); err != nil {
				return err
			}
			v := chart.View{Matrix: m, Title: narrow.title(), MaxRows: narrow.rows}
			v.Notes = slices.Concat(unknown, more, notes(c, m))
			v.Rows = m.Filter(m.Rows(), filter)
			var audited []string
			for _, np := range c.Policies {
				name := np.Namespace + "/" + np.Name
				if v.Policies = append(v.Policies, name); isAudited(np) {
					audited = append(audited, name)
				}
			}
			if len(audited) > 0 {
				v.Notes = append(v.Notes, "audited policies, which decide nothing: "+excerpt.List(audited, ", "))
			}
			warn(cmd, v.Notes)
			return print(cmd.OutOrStdout(), v)
		}),
	}
	source.AddFlags(cmd.Flags())
	narrow.addFlags(cmd.Flags())
	outputFlag(cmd, &output, "", "text", "json", "html", "svg", "dot")
	source.CompleteFlags(cmd)
	return cmd
}

func isAudited(np *networkingv1.NetworkPolicy) bool {
	audited, _ := policy.Audited(np)
	return audited
}

// load reads the source's objects. If the user may not list all objects, load reads only the objects of the
// namespaces in the two lists. The namespaces in the parameter "namespaces" must exist; those in the parameter
// "also" may be missing. An agent that watches the API server knows no Services, so load looks them up itself. If
// load can't, the notes say so.
func load(
	cmd *cobra.Command, source *client.Source, namespaces, also []string,
) (c explain.Cluster, notes []string, err error) {
	c, err = source.Load(cmd.Context(), slices.Concat(namespaces, also)...)
	if err != nil {
		return c, nil, err
	}
	if kind, _, err := source.Kind(); err == nil && kind == client.FromAgent && c.Node != "" && len(c.Services) == 0 {
		var failed error
		if c.Services, failed = findServices(cmd.Context(), source, ""); failed != nil {
			notes = append(notes, "no Service is shown: "+failed.Error())
		} else if len(c.Services) == 0 {
			notes = append(notes, "no Service is shown, because the agent knows none: use --source kubernetes")
		}
	}
	for _, n := range namespaces {
		if err := checkNamespace(c, n); err != nil {
			return c, nil, client.Usage(err)
		}
	}
	return c, notes, nil
}

func notes(c explain.Cluster, m *reach.Matrix) (notes []string) {
	notes = append(notes, c.Gaps...)
	host, bare, invented := 0, 0, 0
	for _, p := range c.Pods {
		if p.HostNetwork && !p.Finished {
			host++
		}
	}
	for _, p := range m.Parties {
		for _, addresses := range p.Addresses {
			switch {
			case len(addresses) == 0:
				bare++
			case c.IsInvented(addresses[0]):
				invented++
			}
		}
	}
	note := func(pods int, which, meaning string) {
		if pods > 0 {
			notes = append(notes, fmt.Sprintf("pods %s: %d. %s", which, pods, meaning))
		}
	}
	note(host, "that use their node's network", "No policy selects them, and they aren't shown")
	note(bare, "without an address that their Node can assign", "No ipBlock counts as containing them")
	networks := strings.Trim(strings.ReplaceAll(fmt.Sprint(c.Invented), " ", " or "), "[]")
	note(invented, "without an address yet", "They count as addresses in "+networks)
	for _, p := range ruleset.Together(c.Problems) {
		notes = append(notes, p.String())
	}
	for _, u := range c.Unenforced {
		notes = append(notes, u.String())
	}
	return notes
}

func warn(cmd *cobra.Command, notes []string) {
	for _, n := range notes {
		_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "weirctl: note:", chart.OneLine(n))
	}
}
