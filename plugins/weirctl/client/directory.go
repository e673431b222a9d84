package client

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/source/manifests"
)

// invented has networks that no host uses (RFC 1112, section 4: class E; RFC 6666: discard only). A pod from a file
// gets made-up addresses from these networks if its manifest has no address.
var invented = [...]netip.Prefix{
	conf.IPv4: netip.MustParsePrefix("240.0.0.0/8"), conf.IPv6: netip.MustParsePrefix("100::/64"),
}

// loadDirectory reads manifests. Each workload counts as one pod. Unreadable files are an error only if no object could
// be read. Otherwise Gaps names the first unreadable file.
func loadDirectory(ctx context.Context, path string) (explain.Cluster, error) {
	d := &manifests.Dir{Path: path, IgnoreBroken: true}
	_, err := d.Check()
	objects, services, viewErr := d.View(ctx, func(*policy.Pod) bool { return true })
	if viewErr != nil {
		return explain.Cluster{}, viewErr
	}
	if err != nil && objects.Empty() {
		return explain.Cluster{}, fmt.Errorf("read %s: %s", path, firstLine(err))
	}
	if objects.Empty() && len(services) == 0 {
		return explain.Cluster{}, fmt.Errorf("%s has no manifest of a pod, a workload, a NetworkPolicy or a Namespace", path)
	}
	c := explain.Cluster{Objects: objects, Services: services}
	if err != nil {
		c.Gaps = append(c.Gaps, "not everything can be read: "+firstLine(err))
	}
	addWorkloads(&c)
	inventAddresses(&c)
	return c, nil
}

func firstLine(err error) string {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	if len(lines) == 1 {
		return lines[0]
	}
	return fmt.Sprintf("%s (and %d more; weir-agent check lists all)", lines[0], len(lines)-1)
}

// addWorkloads adds a pod for each workload without an owner, unless there is a pod of that name.
func addWorkloads(c *explain.Cluster) {
	c.Pods = slices.Clone(c.Pods)
	taken := map[policy.Name]bool{}
	for _, p := range c.Pods {
		taken[policy.Name{Namespace: p.Namespace, Name: p.Name}] = true
	}
	for _, w := range c.Workloads {
		name := policy.Name{Namespace: w.Namespace, Name: w.Name}
		if w.Kind == "Pod" || w.Owner != "" || taken[name] {
			continue
		}
		taken[name] = true
		p := w.Pod
		p.Namespace, p.Name = w.Namespace, w.Name
		c.Pods = append(c.Pods, p)
	}
}

// inventAddresses gives each pod without addresses an address of each family that the source's objects use. Pods in the
// host's network and finished pods get no address. If the source has Nodes, the networks of the made-up addresses
// become podCIDRs of every node.
func inventAddresses(c *explain.Cluster) {
	families := familiesOf(c)
	next := invented
	nodes := map[string]bool{}
	any := false
	for i := range c.Pods {
		p := &c.Pods[i]
		nodes[p.NodeName] = true
		if len(p.Addresses) > 0 || p.HostNetwork || p.Finished {
			continue
		}
		any = true
		if p.NodeName == "" {
			p.NodeName = explain.NoNode
			nodes[p.NodeName] = true
		}
		for _, f := range families {
			a := next[f].Addr().Next()
			next[f] = netip.PrefixFrom(a, next[f].Bits())
			p.Addresses = append(p.Addresses, a)
		}
	}
	if !any {
		return
	}
	c.Invented = invented[:]
	if len(c.Nodes) == 0 {
		return
	}
	c.Nodes = slices.Clone(c.Nodes)
	for i := range c.Nodes {
		n := &c.Nodes[i]
		n.PodCIDRs = append(slices.Clip(n.PodCIDRs), invented[:]...)
		delete(nodes, n.Name)
	}
	delete(nodes, "") // a pod without a node adds no Node
	for name := range nodes {
		c.Nodes = append(c.Nodes, policy.Node{Name: name, PodCIDRs: invented[:]})
	}
}

func familiesOf(c *explain.Cluster) (families []conf.Family) {
	used := map[conf.Family]bool{}
	for _, p := range c.Pods {
		for _, a := range p.Addresses {
			used[conf.FamilyOf(a)] = true
		}
	}
	for _, n := range c.Nodes {
		for _, p := range n.PodCIDRs {
			used[conf.FamilyOf(p.Addr())] = true
		}
	}
	if len(used) == 0 {
		used[conf.IPv4] = true
	}
	for _, f := range conf.Families {
		if used[f] {
			families = append(families, f)
		}
	}
	return families
}
