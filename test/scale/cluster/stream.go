package cluster

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-net/weir/test/scale/apiserver"
)

// Mix has the proportions of the kinds of events in a stream. Each share is relative to the sum of the three shares.
type Mix struct {
	// Status is the share of events that change parts of a pod's status on which no policy depends.
	Status int
	// Elsewhere is the share of events that create, start and delete pods that are peers in no policy of the measured
	// node.
	Elsewhere int
	// Here is the share of events that create, start and delete pods that are peers in the measured node's policies.
	Here int
}

// ParseMix parses a mix such as 50:40:10, in the order of Mix's fields.
func ParseMix(s string) (Mix, error) {
	var parts [3]int
	list := strings.Split(s, ":")
	for i, p := range list {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 || len(list) != len(parts) {
			return Mix{}, fmt.Errorf("mix %q: must be three numbers such as 50:40:10", s)
		}
		parts[i] = n
	}
	if parts == [3]int{} {
		return Mix{}, fmt.Errorf("mix %q: at least one number must be greater than 0", s)
	}
	return Mix{parts[0], parts[1], parts[2]}, nil
}

func (m Mix) String() string { return fmt.Sprintf("%d:%d:%d", m.Status, m.Elsewhere, m.Here) }

type Stream struct {
	cluster       *Cluster
	server        *apiserver.Server
	here          []target // namespaces and apps that policies of the measured node's pods allow
	nextHere      int
	nextElsewhere int
	nextStatus    int
	created       int
}

type target struct{ namespace, app string }

const poolSize = 60

// NewStream returns a stream, and creates its pods.
func NewStream(c *Cluster, s *apiserver.Server) *Stream {
	st := &Stream{cluster: c, server: s}
	s.Put(NewNamespace("elsewhere", "team-elsewhere"))
	for _, i := range c.Local() {
		ns, k := c.place(i)
		app := k / podsPerApp
		if app < PoliciesPerNamespace-1 {
			st.here = append(st.here, target{
				NamespaceName(ns), fmt.Sprintf("app-%d", (app+1)%podsPerApp),
			})
		}
	}
	for i := range poolSize {
		st.step(i, st.elsewhere(i), 110)
		st.step(i, st.elsewhere(i), 110)
		st.step(i, st.hereAt(i), 110+poolSize)
		st.step(i, st.hereAt(i), 110+poolSize)
	}
	return st
}

func (s *Stream) hereAt(i int) target  { return s.here[i%len(s.here)] }
func (s *Stream) elsewhere(int) target { return target{"elsewhere", "batch"} }
func (t target) like(i int) *corev1.Pod {
	p := &corev1.Pod{}
	p.Namespace, p.Name = t.namespace, streamPod(i)
	return p
}
func streamPod(i int) string          { return fmt.Sprintf("stream-%d", i) }
func streamUID(created int) types.UID { return uid(9, created) }

func (s *Stream) step(i int, t target, place int) {
	like := t.like(i)
	now, _ := s.server.Get(like).(*corev1.Pod)
	switch {
	case now == nil:
		s.created++
		p := NewPod(t.namespace, like.Name, t.app, streamUID(s.created))
		p.Spec.NodeName = NodeName(2)
		s.server.Put(p)
	case now.Status.PodIP == "":
		s.server.Update(like, func(o apiserver.Object) {
			run(o.(*corev1.Pod), Address(2, place+i).String())
		})
	default:
		s.server.Delete(like)
	}
}

func (s *Stream) event(m Mix, n int) {
	// The multiplier spreads the kinds evenly over time.
	switch k := n * 7919 % (m.Status + m.Elsewhere + m.Here); {
	case k < m.Status:
		s.beat()
	case k < m.Status+m.Elsewhere:
		i := s.nextElsewhere % poolSize
		s.nextElsewhere++
		s.step(i, s.elsewhere(i), 110)
	default:
		i := s.nextHere % poolSize
		s.nextHere++
		s.step(i, s.hereAt(i), 110+poolSize)
	}
}

// beat changes the status of a pod on another node. If no other node has pods, it changes one of the stream's pods.
func (s *Stream) beat() {
	s.nextStatus++
	for range podsPerNode {
		i := s.nextStatus * 6007 % s.cluster.Pods
		if _, local := s.cluster.local[i]; !local {
			s.server.Beat(&corev1.Pod{}, i)
			return
		}
		s.nextStatus++
	}
	s.server.Update(s.elsewhere(0).like(s.nextStatus%poolSize), func(o apiserver.Object) {
		Beat(o.(*corev1.Pod), uint32(s.nextStatus))
	})
}

// Run makes events until ctx ends, and returns their number. rate is the number of events per second.
func (s *Stream) Run(ctx context.Context, rate float64, m Mix) int {
	began := time.Now()
	for n := 0; ; n++ {
		due := began.Add(time.Duration(float64(n) / rate * float64(time.Second)))
		select {
		case <-ctx.Done():
			return n
		case <-time.After(time.Until(due)):
		}
		s.event(m, n)
	}
}

// Background runs a stream until stop is called. stop returns the number of events.
func (s *Stream) Background(rate float64, m Mix) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	n := 0
	wg.Go(func() { n = s.Run(ctx, rate, m) })
	return func() int {
		cancel()
		wg.Wait()
		return n
	}
}
