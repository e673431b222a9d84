package podcheck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weir-net/weir/conf"
)

// endsAfter is how long after the end of a check's time (Check.Ends) the check's pods end by themselves.
const endsAfter = time.Minute

// create creates the object. It tries again while a new namespace has no service account yet: until then, the API
// server refuses pods.
func (c *Check) create(ctx context.Context, namespace string, o runtime.Object) error {
	for {
		err := c.Create(ctx, resourceOf(o), namespace, o)
		if err == nil || !strings.Contains(err.Error(), "serviceaccount") || !wait(ctx, c.Times.Poll) {
			return err
		}
	}
}

func (c *Check) startPods(ctx context.Context, r *run) (Line, error) {
	began := time.Now()
	for i, n := range r.nodes {
		for _, role := range []string{client, server} {
			o := podObject(role, i, n.Node, cmp.Or(c.Image, n.Image), c.Ends+endsAfter)
			if err := c.create(ctx, r.namespace, o); err != nil {
				return Line{}, err
			}
		}
	}
	by := map[string]*corev1.Pod{}
	for deadline := began.Add(c.Times.Starts); ; {
		clear(by)
		var list corev1.PodList
		err := c.List(ctx, pods, r.namespace, metav1.ListOptions{}, &list, func() {
			for i := range list.Items {
				by[list.Items[i].Name] = &list.Items[i]
			}
			list = corev1.PodList{ListMeta: list.ListMeta}
		})
		if err != nil {
			return Line{}, err
		}
		waiting := 0
		for _, p := range by {
			if !ready(p) && p.Status.Phase != corev1.PodFailed {
				waiting++
			}
		}
		if waiting == 0 || time.Now().After(deadline) {
			break
		}
		c.Progress.Say("%d of %d pods are ready", 2*len(r.nodes)-waiting, 2*len(r.nodes))
		if !wait(ctx, c.Times.Poll) {
			return Line{}, context.Cause(ctx)
		}
	}
	return c.started(ctx, r, by, time.Since(began)), ctx.Err()
}

func (c *Check) started(ctx context.Context, r *run, by map[string]*corev1.Pod, took time.Duration) Line {
	bad := map[string]string{} // why a node's pods have not started, by node
	for i, n := range r.nodes {
		for _, role := range []string{client, server} {
			p := by[podName(role, i)]
			switch {
			case p == nil:
				bad[n.Node] = "the pod has been deleted"
			case !ready(p):
				bad[n.Node] = c.whyNot(ctx, p)
			default:
				r.addresses[p.Name] = addressesOf(p)
			}
		}
		if bad[n.Node] == "" {
			r.works = append(r.works, i)
		}
	}
	count := 2 * len(r.nodes)
	if len(bad) == 0 {
		return Line{Start, OK, fmt.Sprintf("%d pods on %d nodes in %.1f s", count, len(r.nodes), took.Seconds())}
	}
	var words []string
	for _, n := range slices.Sorted(maps.Keys(bad)) {
		words = append(words, fmt.Sprintf("on %s: %s", n, bad[n]))
	}
	if more := len(words) - maxPairs; more > 0 {
		words = append(words[:maxPairs], fmt.Sprintf("and on %d more nodes", more))
	}
	return Line{Start, Broken, strings.Join(words, "; ")}
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func addressesOf(p *corev1.Pod) map[conf.Family]netip.Addr {
	all := map[conf.Family]netip.Addr{}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			all[conf.FamilyOf(a)] = a
		}
	}
	return all
}

func (c *Check) whyNot(ctx context.Context, p *corev1.Pod) string {
	var list corev1.EventList
	var last *corev1.Event
	options := metav1.ListOptions{FieldSelector: "involvedObject.name=" + p.Name}
	_ = c.List(ctx, events, p.Namespace, options, &list, func() { // without events, the pod's state must show the reason
		for _, e := range list.Items {
			if e.Type == corev1.EventTypeWarning && e.InvolvedObject.UID == p.UID &&
				(last == nil || last.LastTimestamp.Before(&e.LastTimestamp)) {
				last = e.DeepCopy()
			}
		}
		list = corev1.EventList{ListMeta: list.ListMeta}
	})
	if last != nil {
		return fmt.Sprintf("%s: %s", last.Reason, strings.TrimSpace(last.Message))
	}
	for _, s := range p.Status.ContainerStatuses {
		switch {
		case s.State.Waiting != nil && s.State.Waiting.Message != "":
			return s.State.Waiting.Reason + ": " + s.State.Waiting.Message
		case s.State.Running != nil:
			return "the pod runs, and the node doesn't reach it: its readiness probe fails"
		}
	}
	return "the pod isn't ready: " + cmp.Or(p.Status.Message, p.Status.Reason, string(p.Status.Phase))
}

func (c *Check) startService(ctx context.Context, r *run) error {
	if err := c.create(ctx, r.namespace, serviceObject(r.first())); err != nil {
		return err
	}
	var s corev1.Service
	if err := c.Get(ctx, services, r.namespace, serviceName, &s); err != nil {
		return fmt.Errorf("read the Service: %w", err)
	}
	for _, ip := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			r.service[conf.FamilyOf(a)] = a
		}
	}
	for _, p := range s.Spec.Ports {
		r.nodePort = uint16(p.NodePort)
	}
	return c.nodeAddresses(ctx, r)
}

// nodeAddresses reads the nodes' addresses for the check of nodePorts. If the user may not read Nodes, this check
// is skipped.
func (c *Check) nodeAddresses(ctx context.Context, r *run) error {
	for i, of := range r.nodes {
		var n corev1.Node
		switch err := c.Get(ctx, nodes, "", of.Node, &n); {
		case apierrors.IsForbidden(err):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("read the Node %s: %w", of.Node, err)
		}
		r.internal[i] = map[conf.Family]netip.Addr{}
		for _, a := range n.Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if a.Type == corev1.NodeInternalIP && err == nil && !r.internal[i][conf.FamilyOf(ip)].IsValid() {
				r.internal[i][conf.FamilyOf(ip)] = ip
			}
		}
	}
	return nil
}

var errNoNodes = errors.New("no node can be checked")
