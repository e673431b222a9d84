// Package wait tests weirctl wait with agents that get changes from the API server late.
package wait

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/source/objects"
	"github.com/weir-net/weir/test/execserver"
	"github.com/weir-net/weir/test/nodetest"
	"github.com/weir-net/weir/test/scale/apiserver"
)

func TestMain(m *testing.M) { nodetest.MainAsShipped(m) }

type waited struct {
	*nodetest.Cluster
	server  *apiserver.Server
	cluster *client.Cluster
	pods    map[policy.Name]*nodetest.Pod
	heard   map[policy.Name]*nodetest.Sniffer // the packets that come to each pod
}

// servedPort is the API server's port on the router. The function late forwards connections from latePort to it.
const (
	servedPort = 6443
	latePort   = 6444
)

// late forwards connections from one address of the router to another. It delays the answers.
func late(t *testing.T, from, to string, delay time.Duration) {
	t.Helper()
	var listener net.Listener
	nodetest.In(t, nodetest.RouterNS, func() (err error) {
		listener, err = net.Listen("tcp", from)
		return err
	})
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			var server net.Conn
			nodetest.In(t, nodetest.RouterNS, func() (err error) {
				server, err = net.Dial("tcp", to)
				return err
			})
			go func() {
				_, _ = io.Copy(server, client)
				_ = server.Close()
			}()
			go forwardLate(client, server, delay)
		}
	}()
}

func forwardLate(client, server net.Conn, delay time.Duration) {
	type part struct {
		bytes []byte
		due   time.Time
	}
	parts := make(chan part, 10_000)
	go func() {
		defer close(parts)
		for {
			buf := make([]byte, 32<<10)
			k, err := server.Read(buf)
			if err != nil {
				return
			}
			parts <- part{buf[:k], time.Now().Add(delay)}
		}
	}()
	for p := range parts {
		time.Sleep(time.Until(p.due))
		if _, err := client.Write(p.bytes); err != nil {
			break
		}
	}
	_ = client.Close()
	for range parts { // until the server has closed the connection
	}
}

// newWaited makes a cluster. Each node gets the API server's answers 100 ms later than the node before it.
func newWaited(t *testing.T, size int) *waited {
	t.Helper()
	w := &waited{
		Cluster: nodetest.NewCluster(t, size), pods: map[policy.Name]*nodetest.Pod{},
		heard: map[policy.Name]*nodetest.Sniffer{},
	}
	router := fmt.Sprintf("172.20.1.1:%d", servedPort)
	nodetest.Run(t, "ip", "-n", "router", "link", "set", "lo", "up")
	nodetest.In(t, nodetest.RouterNS, func() (err error) {
		w.server, err = apiserver.New(router, apiserver.Pods(nil), apiserver.Namespaces(nil), apiserver.Nodes(nil),
			apiserver.NetworkPolicies(nil), apiserver.Events())
		return err
	})
	t.Cleanup(w.server.Close)
	for _, name := range []string{"kube-system", "x", "xa", "z"} {
		labels := map[string]string{corev1.LabelMetadataName: name, "a": "1"}
		w.server.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
	}
	for i, n := range w.Nodes {
		w.server.Put(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: n.Name, CreationTimestamp: metav1.NewTime(time.Unix(int64(i), 0))},
			Spec:       corev1.NodeSpec{PodCIDRs: []string{fmt.Sprintf("10.88.%d.0/24", i+1)}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("172.20.%d.10", i+1)},
			}},
		})
		w.server.Put(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "kube-system", Name: "weir-" + n.Name, UID: "0", Labels: map[string]string{"k8s-app": "weir"},
			},
			Spec: corev1.PodSpec{NodeName: n.Name, HostNetwork: true},
			Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
				Name: "weir-agent", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			}}},
		})
	}
	for i, n := range w.Nodes {
		way := fmt.Sprintf("172.20.%d.1:%d", i+1, latePort)
		late(t, way, router, time.Duration(i)*100*time.Millisecond)
		// The server's certificate is for the name example.com.
		text := strings.NewReplacer("cluster: {", "cluster: {tls-server-name: example.com, ", router, way).
			Replace(string(w.server.Kubeconfig()))
		kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
		if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n.SpawnAgent("--source", "kubernetes", "--kubeconfig", kubeconfig)
	}
	for _, n := range w.Nodes {
		w.Eventually("the configuration of "+n.Name, func() error { _, err := os.Stat(n.Conflist); return err })
	}
	w.connect(t, router)
	return w
}

func (w *waited) connect(t *testing.T, router string) {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: router})
	proxy.Transport = &http.Transport{
		TLSClientConfig: insecure(), DialContext: func(context.Context, string, string) (conn net.Conn, err error) {
			nodetest.In(t, nodetest.RouterNS, func() error {
				conn, err = net.Dial("tcp", router)
				return nil
			})
			return conn, err
		},
	}
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/exec") {
			node := strings.TrimPrefix(strings.Split(r.URL.Path, "/")[6], "weir-")
			i := slices.IndexFunc(w.Nodes, func(n *nodetest.ClusterNode) bool { return n.Name == node })
			execserver.Serve(rw, r, func(command []string, in io.Reader, out, errs io.Writer, gone <-chan struct{}) error {
				cmd := w.Nodes[i].Command(filepath.Join(w.Bin, command[0]), command[1:]...)
				cmd.Stdout, cmd.Stderr = out, errs
				stdin, err := cmd.StdinPipe()
				if err != nil {
					return err
				}
				go func() { _, _ = io.Copy(stdin, in) }()
				if err := cmd.Start(); err != nil {
					return err
				}
				go func() {
					<-gone
					_ = cmd.Process.Kill()
				}()
				return cmd.Wait()
			})
			return
		}
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(front.Close)
	api, err := client.NewAPI(&rest.Config{Host: front.URL})
	if err != nil {
		t.Fatal(err)
	}
	w.cluster = &client.Cluster{API: api, Namespace: "kube-system"}
}

func (w *waited) add(n *nodetest.ClusterNode, namespace, name string, labels map[string]string) {
	w.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + name), Labels: labels},
		Spec: corev1.PodSpec{NodeName: n.Name, Containers: []corev1.Container{{
			Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}, {Name: "alt", ContainerPort: 81}},
		}}},
	}
	w.server.Put(pod)
	p := n.AddPod(namespace, name)
	w.server.Update(pod, func(o apiserver.Object) { // kubelet writes the pod's status after ADD
		o.(*corev1.Pod).Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: p.IP}}}
	})
	w.pods[policy.Name{Namespace: namespace, Name: name}] = p
	w.heard[policy.Name{Namespace: namespace, Name: name}] = nodetest.Sniff(w, p.Netns, "eth0")
	for _, port := range []string{":80", ":81"} {
		w.Serve(p.Netns, "tcp", p.IP+port)
	}
}

func (w *waited) wait(t *testing.T, kind, namespace, name string, deleted bool) client.Waited {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	got, err := w.cluster.Wait(ctx, client.Wait{
		Kind: kind, Name: policy.Name{Namespace: namespace, Name: name}, Deleted: deleted,
		AskOptions: client.AskOptions{Parallel: 8, Within: time.Minute},
	})
	if err != nil {
		t.Fatalf("wait for %s %s/%s: %v: %v", kind, namespace, name, err, got.Missing)
	}
	return got
}

// TestWait: after weirctl wait has returned, the first packet of each connection gets the policies' verdict. The
// variable WEIR_WAITS is the number of random changes.
func TestWait(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	rounds := 25
	if n, err := strconv.Atoi(os.Getenv("WEIR_WAITS")); err == nil {
		rounds = n
	}
	r := rand.New(rand.NewPCG(1, 2))
	w := newWaited(t, 4)
	objectsOf := map[policy.Name]*corev1.Pod{}
	for i, n := range w.Nodes {
		for _, namespace := range []string{"x", []string{"xa", "z"}[i%2]} {
			w.add(n, namespace, fmt.Sprint("p", i), map[string]string{"a": fmt.Sprint(1 + i%2)})
		}
	}
	for name := range w.pods {
		got := w.wait(t, "pod", name.Namespace, name.Name, false)
		if len(got.Nodes) == 0 {
			t.Fatalf("%+v", got)
		}
		objectsOf[name] = w.server.Get(&corev1.Pod{ObjectMeta: named(name)}).(*corev1.Pod)
	}
	policies := map[policy.Name]*networkingv1.NetworkPolicy{}
	took := []time.Duration{}
	for i := range rounds {
		change := r.IntN(5)
		began := time.Now()
		switch name := pickName(r, policies); {
		case change == 0 && len(policies) > 0:
			w.server.Delete(policies[name])
			delete(policies, name)
			w.wait(t, "policy", name.Namespace, name.Name, true)
		case change == 1:
			pod := pickName(r, w.pods)
			w.server.Update(objectsOf[pod], func(o apiserver.Object) {
				o.SetLabels(map[string]string{"a": fmt.Sprint(r.IntN(3)), "b": fmt.Sprint(r.IntN(3))})
			})
			w.wait(t, "pod", pod.Namespace, pod.Name, false)
		default:
			np := policytest.Policy(r, r.IntN(5))
			w.server.Put(np)
			policies[policy.Name{Namespace: np.Namespace, Name: np.Name}] = np
			w.wait(t, "policy", np.Namespace, np.Name, false)
		}
		took = append(took, time.Since(began))
		if wrong := w.probe(t, r, policies); len(wrong) > 0 {
			t.Fatalf("change %d: after wait has returned:\n%s", i, strings.Join(wrong, "\n"))
		}
	}
	slices.Sort(took)
	t.Logf("%d changes, 0 wrong; wait took %v (median), %v (longest)", rounds, took[len(took)/2], took[len(took)-1])
}

func named(name policy.Name) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}
}

func pickName[T any](r *rand.Rand, of map[policy.Name]T) policy.Name {
	names := slices.SortedFunc(maps.Keys(of), func(a, b policy.Name) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	if len(names) == 0 {
		return policy.Name{}
	}
	return names[r.IntN(len(names))]
}

// answers is how long an allowed connection may take on a busy machine. Meanwhile TCP may repeat the connection's first
// packet, so probe checks that each copy has arrived. A denied connection must not succeed within notWithin.
const (
	answers   = 20 * time.Second
	notWithin = 250 * time.Millisecond
)

// repeated is a connection whose first packet the client has sent several times.
type repeated struct {
	from, to policy.Name
	src      netip.AddrPort
	sent     int
}

// repeats returns how often TCP has repeated packets of the connection.
func repeats(conn net.Conn) (n int, err error) {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	outer := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err = errors.Join(outer, err); err != nil {
		return 0, err
	}
	return int(info.Total_retrans), nil
}

// arrived returns how many first packets of connections have come to each pod since the last call, by their source.
func (w *waited) arrived() map[policy.Name]map[netip.AddrPort]int {
	all := map[policy.Name]map[netip.AddrPort]int{}
	for name, s := range w.heard {
		all[name] = map[netip.AddrPort]int{}
		for _, frame := range s.Frames(false, 0) {
			p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
			ip, ok := p.NetworkLayer().(*layers.IPv4)
			if tcp, is := p.TransportLayer().(*layers.TCP); ok && is && tcp.SYN && !tcp.ACK {
				src, _ := netip.AddrFromSlice(ip.SrcIP.To4())
				all[name][netip.AddrPortFrom(src, uint16(tcp.SrcPort))]++
			}
		}
	}
	return all
}

func (w *waited) probe(
	t *testing.T, r *rand.Rand, policies map[policy.Name]*networkingv1.NetworkPolicy,
) (wrong []string) {
	t.Helper()
	s := policy.State{}
	for _, name := range []string{"x", "xa", "z"} {
		n := objects.Namespace(w.server.Get(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}).(*corev1.Namespace))
		s.Namespaces = append(s.Namespaces, n)
	}
	for i, n := range w.Nodes {
		cidr := netip.MustParsePrefix(fmt.Sprintf("10.88.%d.0/24", i+1))
		s.Nodes = append(s.Nodes, policy.Node{Name: n.Name, PodCIDRs: []netip.Prefix{cidr}})
	}
	for name := range w.pods {
		pod, _ := objects.Pod(w.server.Get(&corev1.Pod{ObjectMeta: named(name)}).(*corev1.Pod))
		s.Pods = append(s.Pods, pod)
	}
	s.Policies = slices.Collect(maps.Values(policies))
	evaluator := verdict.New(s)
	w.arrived() // forgets earlier packets
	var mu sync.Mutex
	var more []repeated
	var probing sync.WaitGroup
	for from, a := range w.pods {
		for to, b := range w.pods {
			if a == b {
				continue
			}
			port := uint16(80 + r.IntN(2))
			v := evaluator.Evaluate(verdict.Packet{
				Src: netip.MustParseAddr(a.IP), Dst: netip.MustParseAddr(b.IP), Proto: ruleset.TCP, Port: port,
			})
			probing.Go(func() {
				within := notWithin
				if v.Allowed() {
					within = answers
				}
				var err error
				one := repeated{from: from, to: to, sent: 1}
				nodetest.In(t, a.Netns, func() error {
					var conn net.Conn
					if conn, err = net.DialTimeout("tcp", fmt.Sprintf("%s:%d", b.IP, port), within); err != nil {
						return nil
					}
					defer func() { _ = conn.Close() }()
					again, unknown := repeats(conn)
					one.src, one.sent = netip.MustParseAddrPort(conn.LocalAddr().String()), 1+again
					return unknown
				})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case (err == nil) != v.Allowed():
					wrong = append(wrong, fmt.Sprintf("%v to %v port %d: %v, want %v", from, to, port, err, v))
				case one.sent > 1:
					more = append(more, one)
				}
			})
		}
	}
	probing.Wait()
	arrived := w.arrived()
	for _, one := range more {
		if came := arrived[one.to][one.src]; came < one.sent {
			wrong = append(wrong, fmt.Sprintf("%v to %v: of %d first packets %d arrived", one.from, one.to, one.sent, came))
		}
	}
	return wrong
}

func insecure() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the certificate lacks the router's address
}
