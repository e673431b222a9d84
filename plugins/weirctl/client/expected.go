package client

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/claims"
	"github.com/weir-net/weir/policy/enforced"
	"github.com/weir-net/weir/source/objects"
)

// expected has the objects that expect has read from the API server. The method named "on" computes from these objects
// what a node must enforce.
type expected struct {
	engine   *policy.Engine
	at       enforced.Position
	byNode   map[string][]expectedPod
	policed  map[string]bool
	policies map[policy.Name]metav1.ObjectMeta
	pods     map[policy.Name]expectedPod
}

type expectedPod struct {
	policy.Pod
	version  string
	deleting bool
}

func (p expectedPod) is(e policy.Endpoint) bool {
	return e.Pod.Namespace == p.Namespace && e.Pod.Name == p.Name && policy.SameUID(p.UID, e.Pod.UID)
}

// expect reads the objects. Its requests name no resourceVersion, so the API server answers with its newest state.
func (a *API) expect(ctx context.Context) (*expected, error) {
	x := &expected{
		engine: policy.NewEngine(""), byNode: map[string][]expectedPod{}, policed: map[string]bool{},
		policies: map[policy.Name]metav1.ObjectMeta{}, pods: map[policy.Name]expectedPod{},
	}
	d := policy.NewDelta()
	for _, read := range []func(context.Context, *API, *policy.Delta) error{
		x.readPolicies, x.readNamespaces, x.readNodes, x.readPods,
	} {
		if err := read(ctx, a, d); err != nil {
			return nil, err
		}
	}
	x.engine.Apply(d)
	return x, nil
}

func raise(at *uint64, o metav1.Object) error {
	version, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil {
		return fmt.Errorf("%s has the resourceVersion %q: the API server's versions are no numbers, so weirctl can't "+
			"compare them with those that agents have", o.GetName(), o.GetResourceVersion())
	}
	*at = max(*at, version)
	return nil
}

type resourceList[T any, L list] struct {
	of    schema.GroupVersionResource
	items func(L) []T
}

// all lists a resource, and calls the function each for every object. It returns the first error of these calls, or why
// the resource can't be listed.
func all[T any, L list](
	ctx context.Context, a *API, resource resourceList[T, L], into L, each func(*T) error,
) (err error) {
	listErr := a.each(ctx, resource.of, "", into, func() {
		for _, o := range resource.items(into) {
			if err == nil {
				err = each(&o)
			}
		}
	})
	if listErr != nil {
		return a.listError(ctx, resource.of.Resource, "", listErr)
	}
	return err
}

func (x *expected) readPolicies(ctx context.Context, a *API, d *policy.Delta) error {
	r := resourceList[networkingv1.NetworkPolicy, *networkingv1.NetworkPolicyList]{
		networking.WithResource("networkpolicies"),
		func(l *networkingv1.NetworkPolicyList) []networkingv1.NetworkPolicy { return l.Items },
	}
	return all(ctx, a, r, &networkingv1.NetworkPolicyList{}, func(p *networkingv1.NetworkPolicy) error {
		name := policy.Name{Namespace: p.Namespace, Name: p.Name}
		x.policies[name], x.policed[p.Namespace] = p.ObjectMeta, true
		d.Policies[name] = []*networkingv1.NetworkPolicy{p.DeepCopy()}
		return raise(&x.at.Policies, p)
	})
}

func (x *expected) readNamespaces(ctx context.Context, a *API, d *policy.Delta) error {
	r := resourceList[corev1.Namespace, *corev1.NamespaceList]{
		core.WithResource("namespaces"), func(l *corev1.NamespaceList) []corev1.Namespace { return l.Items },
	}
	return all(ctx, a, r, &corev1.NamespaceList{}, func(n *corev1.Namespace) error {
		read := objects.Namespace(n)
		d.Namespaces[n.Name] = &read
		return raise(&x.at.Namespaces, n)
	})
}

func (x *expected) readNodes(ctx context.Context, a *API, _ *policy.Delta) error {
	r := resourceList[corev1.Node, *corev1.NodeList]{
		core.WithResource("nodes"), func(l *corev1.NodeList) []corev1.Node { return l.Items },
	}
	var nodes []policy.Node
	err := all(ctx, a, r, &corev1.NodeList{}, func(n *corev1.Node) error {
		read, _ := objects.Node(n)
		nodes = append(nodes, read)
		return raise(&x.at.Nodes, n)
	})
	if err == nil {
		accepted, _ := claims.Settle(nodes, claims.Terms{})
		x.engine.SetNodes(accepted)
	}
	return err
}

func (x *expected) readPods(ctx context.Context, a *API, d *policy.Delta) error {
	r := resourceList[corev1.Pod, *corev1.PodList]{
		core.WithResource("pods"), func(l *corev1.PodList) []corev1.Pod { return l.Items },
	}
	return all(ctx, a, r, &corev1.PodList{}, func(p *corev1.Pod) error {
		read, _ := objects.Pod(p)
		name := policy.Name{Namespace: p.Namespace, Name: p.Name}
		d.Pods[name] = []*policy.Pod{&read}
		one := expectedPod{read, p.ResourceVersion, p.DeletionTimestamp != nil}
		x.pods[name] = one
		if !read.HostNetwork && !read.Finished && read.NodeName != "" {
			x.byNode[read.NodeName] = append(x.byNode[read.NodeName], one)
		}
		return raise(&x.at.Pods, p)
	})
}

// on returns the short form of the ruleset that the node must have: the pods' classes, and digests of the sets.
// endpoints are the node's attachments. If a pod of the node has no attachment, the pod counts as a pod without
// addresses.
func (x *expected) on(node string, endpoints []policy.Endpoint, q enforced.Question) enforced.ShortForm {
	hide, show := policy.NewDelta(), policy.NewDelta()
	for _, p := range x.byNode[node] {
		if len(p.Addresses) > 0 && !slices.ContainsFunc(endpoints, p.is) {
			name := policy.Name{Namespace: p.Namespace, Name: p.Name}
			bare := p.Pod
			bare.Addresses = nil
			hide.Pods[name], show.Pods[name] = []*policy.Pod{&bare}, []*policy.Pod{&p.Pod}
		}
	}
	x.engine.Apply(hide)
	defer x.engine.Apply(show)
	x.engine.SetEndpoints(endpoints)
	return enforced.Of(x.engine.Ruleset(), q.About(endpoints), q.Peers)
}
