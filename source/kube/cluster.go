package kube

import (
	"cmp"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/source/objects"
)

// cluster keeps the fields that policy needs of each object of the cluster. It never changes a stored object: an event
// replaces the object.
type cluster struct {
	mu                            sync.Mutex // also locks the mirrors
	pods                          pods
	namespaces                    map[string]*namespace
	nodes                         map[string]*policy.Node
	policies                      map[policy.Name]*networkingv1.NetworkPolicy
	selectors                     *pools // shared memory for equal labels of policies' selectors
	departing                     *departing
	problems                      map[objectName][]ruleset.Problem
	pending                       *policy.Delta
	nodesChanged, problemsChanged bool
	number                        uint64

	now     func() time.Time
	wake    chan struct{} // has a message if there may be a new delta
	mirrors mirrors
}

type objectName struct {
	kind string
	policy.Name
}

type namespace struct {
	*policy.Namespace
	uid      types.UID
	deleting bool
}

type node struct {
	*policy.Node
	problems []ruleset.Problem
}

type mirrors struct {
	pods       *mirror[*corev1.Pod, podItem]
	namespaces *mirror[*corev1.Namespace, namespace]
	nodes      *mirror[*corev1.Node, node]
	policies   *mirror[*networkingv1.NetworkPolicy, *networkingv1.NetworkPolicy]
}

func newCluster() *cluster {
	c := &cluster{
		pods: newPods(), namespaces: map[string]*namespace{}, nodes: map[string]*policy.Node{},
		policies: map[policy.Name]*networkingv1.NetworkPolicy{}, selectors: newPools(), departing: newDeparting(),
		problems: map[objectName][]ruleset.Problem{}, wake: make(chan struct{}, 1), now: time.Now,
	}
	after := func(*policy.Name) { c.wakeUp() } // Run replaces this function for pods
	c.mirrors = mirrors{
		pods: &mirror[*corev1.Pod, podItem]{
			mu: &c.mu, read: c.readPod, put: c.putPod, remove: c.removePod, names: c.pods.names,
			replaced: c.pods.common.sweep, after: after,
		},
		namespaces: &mirror[*corev1.Namespace, namespace]{
			mu: &c.mu, read: readNamespace, put: c.putNamespace, remove: c.removeNamespace,
			names: clusterWide(c.namespaces), after: after,
		},
		nodes: &mirror[*corev1.Node, node]{
			mu: &c.mu, read: readNode, put: c.putNode, remove: c.removeNode, names: clusterWide(c.nodes), after: after,
		},
		policies: &mirror[*networkingv1.NetworkPolicy, *networkingv1.NetworkPolicy]{
			mu: &c.mu, read: c.readPolicy, put: c.putPolicy, remove: c.removePolicy, names: maps.Keys(c.policies),
			replaced: c.selectors.sweep, after: after,
		},
	}
	return c
}

func clusterWide[T any](objects map[string]T) func(func(policy.Name) bool) {
	return func(yield func(policy.Name) bool) {
		for name := range objects {
			if !yield(policy.Name{Name: name}) {
				return
			}
		}
	}
}

func (c *cluster) wakeUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.complete() || !c.waiting() {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *cluster) waiting() bool {
	return c.pending == nil || !c.pending.Empty() || c.nodesChanged || c.problemsChanged
}

func (c *cluster) complete() bool {
	m := c.mirrors
	return m.pods.listed && m.namespaces.listed && m.nodes.listed && m.policies.listed
}

func (c *cluster) nextDelta() *policy.Delta {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.pending
	first := d == nil
	if first {
		d = c.everything()
		c.departing.started = c.now()
	}
	c.pending = policy.NewDelta()
	if c.nodesChanged {
		d.Nodes = values(c.nodes)
	}
	if c.problemsChanged {
		problems := []ruleset.Problem{}
		for _, name := range slices.SortedFunc(maps.Keys(c.problems), objectName.compare) {
			problems = append(problems, c.problems[name]...)
		}
		d.Problems = &problems
	}
	c.nodesChanged, c.problemsChanged = false, false
	if first || !d.Empty() {
		c.number++
	}
	d.Number = c.number
	return d
}

func (c *cluster) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.departing.expire(c.now())
}

func (c *cluster) everything() *policy.Delta {
	d := policy.NewDelta()
	d.Pods = make(map[policy.Name][]*policy.Pod, c.pods.known.Len())
	for name, p := range c.pods.known.All() {
		d.Pods[name] = []*policy.Pod{p}
	}
	for name, n := range c.namespaces {
		d.Namespaces[name] = n.Namespace
	}
	for name, p := range c.policies {
		d.Policies[name] = []*networkingv1.NetworkPolicy{p}
	}
	for _, p := range c.departing.kept() {
		d.Policies[nameOf(p)] = []*networkingv1.NetworkPolicy{p}
	}
	return d
}

func values[T any](by map[string]*T) *[]T {
	all := make([]T, 0, len(by))
	for _, name := range slices.Sorted(maps.Keys(by)) {
		all = append(all, *by[name])
	}
	return &all
}

func (n objectName) compare(o objectName) int {
	return cmp.Or(strings.Compare(n.kind, o.kind), strings.Compare(n.Namespace, o.Namespace),
		strings.Compare(n.Name.Name, o.Name.Name))
}

func (c *cluster) setProblems(kind string, name policy.Name, problems []ruleset.Problem) {
	of := objectName{kind, name}
	if slices.Equal(c.problems[of], problems) {
		return
	}
	c.problemsChanged = true
	if c.problems[of] = problems; len(problems) == 0 {
		delete(c.problems, of)
	}
}

func readNamespace(n *corev1.Namespace) namespace {
	read := objects.Namespace(n)
	return namespace{&read, n.UID, n.DeletionTimestamp != nil}
}

func (c *cluster) putNamespace(name policy.Name, n namespace) {
	if was := c.namespaces[name.Name]; was != nil && reflect.DeepEqual(was.Namespace, n.Namespace) {
		n.Namespace = was.Namespace
	} else if c.pending != nil {
		c.pending.Namespaces[name.Name] = n.Namespace
	}
	c.namespaces[name.Name] = &n
	c.reportPolicies(c.departing.see(name.Name, n.uid, n.deleting, c.now()))
	c.checkDeparture(name.Name)
}

func (c *cluster) removeNamespace(name policy.Name) {
	if c.namespaces[name.Name] == nil {
		return
	}
	delete(c.namespaces, name.Name)
	if c.pending != nil {
		c.pending.Namespaces[name.Name] = nil
	}
	c.departing.lose(name.Name)
	c.checkDeparture(name.Name)
}

// checkDeparture is for a namespace that is being deleted. If the namespace and its pods are gone, checkDeparture
// drops the namespace's kept policies. If pods are left, and some of the deleted policies may be unknown,
// checkDeparture reports a problem.
func (c *cluster) checkDeparture(name string) {
	inhabited := c.pods.in[name] > 0
	c.reportPolicies(nil, c.departing.end(name, inhabited))
	var problems []ruleset.Problem
	if inhabited && c.departing.unknown(name) {
		problems = []ruleset.Problem{{
			Object: "Namespace " + name, Field: "metadata.deletionTimestamp",
			Message: "the namespace was being deleted as this agent started, so policies may be gone that still count; " +
				"its pods get only the traffic that the remaining policies allow",
		}}
	}
	c.setProblems("Namespace", policy.Name{Name: name}, problems)
}

func (c *cluster) reportPolicies(back, over []*networkingv1.NetworkPolicy) {
	if c.pending == nil {
		return
	}
	for _, p := range over {
		c.pending.Policies[nameOf(p)] = nil
	}
	for _, p := range back {
		c.pending.Policies[nameOf(p)] = []*networkingv1.NetworkPolicy{p}
	}
}

func readNode(n *corev1.Node) node {
	read, problems := objects.Node(n)
	return node{&read, problems}
}

func (c *cluster) putNode(name policy.Name, n node) {
	c.setProblems("Node", name, n.problems)
	if was := c.nodes[name.Name]; was == nil || !reflect.DeepEqual(was, n.Node) {
		c.nodes[name.Name], c.nodesChanged = n.Node, true
	}
}

func (c *cluster) removeNode(name policy.Name) {
	if c.nodes[name.Name] == nil {
		return
	}
	delete(c.nodes, name.Name)
	c.nodesChanged = true
	c.setProblems("Node", name, nil)
}

func (c *cluster) readPolicy(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	for labels := range matchLabels(&p.Spec) {
		*labels = c.selectors.labels.share(*labels)
	}
	meta := metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Annotations: policy.KeepAudit(p.Annotations)}
	return &networkingv1.NetworkPolicy{ObjectMeta: meta, Spec: p.Spec}
}

func (c *cluster) putPolicy(name policy.Name, p *networkingv1.NetworkPolicy) {
	c.departing.stored(name)
	if was := c.policies[name]; was != nil && reflect.DeepEqual(was, p) {
		return // the old object stays, so the engine doesn't parse the policy again
	}
	for labels := range matchLabels(&p.Spec) {
		c.selectors.labels.use(*labels)
	}
	c.releaseSelectors(c.policies[name])
	c.policies[name] = p
	c.reportPolicies([]*networkingv1.NetworkPolicy{p}, nil)
}

func (c *cluster) removePolicy(name policy.Name) {
	p := c.policies[name]
	if p == nil {
		return
	}
	delete(c.policies, name)
	c.releaseSelectors(p)
	if !c.departing.removed(p, c.now()) {
		c.reportPolicies(nil, []*networkingv1.NetworkPolicy{p})
	}
}

func (c *cluster) releaseSelectors(p *networkingv1.NetworkPolicy) {
	if p == nil {
		return
	}
	for labels := range matchLabels(&p.Spec) {
		c.selectors.labels.release(*labels)
	}
}

// matchLabels yields pointers to the non-empty matchLabels of all selectors in a policy.
func matchLabels(spec *networkingv1.NetworkPolicySpec) iter.Seq[*map[string]string] {
	return func(yield func(*map[string]string) bool) {
		on := true
		of := func(s *metav1.LabelSelector) {
			if on && s != nil && len(s.MatchLabels) > 0 {
				on = yield(&s.MatchLabels)
			}
		}
		peers := func(list []networkingv1.NetworkPolicyPeer) {
			for i := range list {
				of(list[i].PodSelector)
				of(list[i].NamespaceSelector)
			}
		}
		of(&spec.PodSelector)
		for i := range spec.Ingress {
			peers(spec.Ingress[i].From)
		}
		for i := range spec.Egress {
			peers(spec.Egress[i].To)
		}
	}
}
