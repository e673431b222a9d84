package scale_test

import (
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-net/weir/test/scale/cluster"
)

type attacked struct {
	ADD, Deny           []float64 // times for another tenant before the attack, in ms
	ADDUnder, DenyUnder []float64
	Memory              memory // the agent's memory at the end of the attack
}

// attack carries out the attack, and ends it. It measures another tenant's ADD, and the time until a new policy of that
// tenant denies packets. rounds is the number of measurements before the attack, and of those during the attack. During
// the attack, one of the attacker's policies changes before each measurement.
func (n *node) attack(a cluster.Attack, rounds int) attacked {
	var r attacked
	measure := func(add, deny *[]float64) {
		*add = append(*add, n.adds(1)...)
		p := policy("deny")
		d := n.until(filepath.Join("/run/netns", "probes.client"), "", false, func() time.Time { return n.put(p) })
		*deny = append(*deny, float64(d.Microseconds())/1000)
		n.remove(p)
	}
	n.patience = patienceUnderAttack
	defer func() { n.patience = patience }()
	for range rounds {
		runtime.GC() // the API server's garbage must not cost time during the measurement
		measure(&r.ADD, &r.Deny)
	}
	var pods []*corev1.Pod
	for i := range a.Namespaces {
		n.server.Put(cluster.NewNamespace(a.NamespaceName(i), "team-attacker"))
		n.created++
		uid := types.UID(fmt.Sprintf("uid-of-attacker-%d", n.created))
		p := cluster.NewPod(a.NamespaceName(i), "pod", "attacker", uid)
		p.Spec.NodeName = cluster.NodeName(0)
		n.server.Put(p)
		n.attach(p)
		pods = append(pods, p)
	}
	for i := range a.Namespaces {
		for _, p := range a.Policies(i) {
			n.server.Put(p)
		}
	}
	changed := a.Policies(0)[0]
	for i := range rounds {
		runtime.GC()
		changed.Spec.PodSelector.MatchLabels = map[string]string{"app": []string{"attacker", "none"}[i%2]}
		n.server.Put(changed)
		measure(&r.ADDUnder, &r.DenyUnder)
	}
	r.Memory = n.memory()
	for i := range a.Namespaces {
		for _, p := range a.Policies(i) {
			n.server.Delete(p)
		}
	}
	for _, p := range pods {
		n.detach(p)
		n.server.Delete(p)
	}
	for i := range a.Namespaces {
		n.server.Delete(cluster.NewNamespace(a.NamespaceName(i), ""))
	}
	return r
}
