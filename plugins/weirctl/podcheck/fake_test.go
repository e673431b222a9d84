package podcheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	weirctl "github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/plugins/weirctl/probe"
	"github.com/weir-net/weir/test/execserver"
)

type fake struct {
	mu      sync.Mutex
	nodes   int
	objects map[string]runtime.Object // by the path of their URL
	made    int
	starts  func(*corev1.Pod)
	// broken returns why a probe fails, or "" if it succeeds. from and server are the numbers of the client's and
	// the server's node. server is -1 if the probe is to no server pod.
	broken  func(p probe.Probe, from, server int) string
	ignores func(node int) bool
	forbids func(r *http.Request) bool
	runs    func(from int)
}

var (
	testScheme = runtime.NewScheme()
	codecs     = serializer.NewCodecFactory(testScheme)
)

func init() {
	_, _ = corev1.AddToScheme(testScheme), networkingv1.AddToScheme(testScheme)
}

func newFake(nodes int) *fake {
	f := &fake{nodes: nodes, objects: map[string]runtime.Object{}}
	for i := range nodes {
		name := fmt.Sprintf("n%d", i)
		f.objects["/api/v1/nodes/"+name] = &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status: corev1.NodeStatus{
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
				Addresses: []corev1.NodeAddress{
					{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.0.2.%d", i)},
					{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("2001:db8::%d", i)},
				},
			},
		}
		f.objects["/api/v1/namespaces/kube-system/pods/weir-"+name] = &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "weir-" + name, Labels: map[string]string{"k8s-app": "weir"}},
			Spec: corev1.PodSpec{
				NodeName: name, Containers: []corev1.Container{{Name: "weir-agent", Image: "weir:" + name}},
			},
			Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
				Name: "weir-agent", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			}}},
		}
	}
	return f
}

func (f *fake) start(t *testing.T) *weirctl.Cluster {
	t.Helper()
	httpServer := httptest.NewServer(f)
	t.Cleanup(httpServer.Close)
	api, err := weirctl.NewAPI(&rest.Config{Host: httpServer.URL})
	if err != nil {
		t.Fatal(err)
	}
	return &weirctl.Cluster{API: api, Namespace: "kube-system"}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if strings.HasSuffix(path, "/exec") {
		f.exec(w, r)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.forbids != nil && f.forbids(r) {
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden)
		return
	}
	object := f.objects[path]
	switch {
	case r.Method == http.MethodPost:
		f.create(w, r)
	case object == nil && r.Method == http.MethodGet && f.isList(path):
		f.list(w, r)
	case object == nil:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	case r.Method == http.MethodGet:
		answer(w, object)
	case r.Method == http.MethodDelete:
		for p := range f.objects {
			if p == path || strings.HasPrefix(p, path+"/") ||
				strings.HasPrefix(p, "/apis/networking.k8s.io/v1"+strings.TrimPrefix(path, "/api/v1")+"/") {
				delete(f.objects, p)
			}
		}
		answer(w, &metav1.Status{Status: metav1.StatusSuccess})
	case r.Method == http.MethodPatch:
		var patch metav1.PartialObjectMetadata
		_ = json.NewDecoder(r.Body).Decode(&patch)
		object.(metav1.Object).SetAnnotations(patch.Annotations)
		answer(w, object)
	}
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.WriteHeader(code)
	answer(w, &metav1.Status{
		Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: "no: " + string(reason),
	})
}

func answer(w http.ResponseWriter, o runtime.Object) {
	w.Header().Set("Content-Type", "application/json")
	codec := codecs.LegacyCodec(corev1.SchemeGroupVersion, networkingv1.SchemeGroupVersion)
	if err := codec.Encode(o, w); err != nil {
		panic(err)
	}
}

func (f *fake) isList(path string) bool {
	last := path[strings.LastIndex(path, "/")+1:]
	return slices.Contains([]string{"namespaces", "nodes", "pods", "events"}, last)
}

func (f *fake) list(w http.ResponseWriter, r *http.Request) {
	selector, _ := labels.Parse(r.URL.Query().Get("labelSelector"))
	var found []runtime.Object
	for p, o := range f.objects {
		rest, in := strings.CutPrefix(p, r.URL.Path+"/")
		if in && !strings.Contains(rest, "/") && selector.Matches(labels.Set(o.(metav1.Object).GetLabels())) {
			found = append(found, o)
		}
	}
	var list runtime.Object
	switch {
	case strings.HasSuffix(r.URL.Path, "/pods"):
		pods := &corev1.PodList{}
		for _, o := range found {
			pods.Items = append(pods.Items, *o.(*corev1.Pod))
		}
		list = pods
	case strings.HasSuffix(r.URL.Path, "/nodes"):
		all := &corev1.NodeList{}
		for _, o := range found {
			all.Items = append(all.Items, *o.(*corev1.Node))
		}
		list = all
	case strings.HasSuffix(r.URL.Path, "/namespaces"):
		all := &corev1.NamespaceList{}
		for _, o := range found {
			all.Items = append(all.Items, *o.(*corev1.Namespace))
		}
		list = all
	default:
		list = &corev1.EventList{Items: []corev1.Event{{
			Type: corev1.EventTypeWarning, Reason: "FailedCreatePodSandBox", Message: "no address is left",
			InvolvedObject: corev1.ObjectReference{UID: "uid-pod"},
		}}}
	}
	answer(w, list)
}

func (f *fake) create(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	o, _, err := codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		panic(err)
	}
	m := o.(metav1.Object)
	f.made++
	m.SetUID(types.UID(fmt.Sprint(f.made)))
	switch o := o.(type) {
	case *corev1.Pod:
		i, _ := strconv.Atoi(o.Labels[indexLabel])
		o.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		last := i*10 + map[string]int{client: 1, server: 2}[o.Labels[CheckLabel]]
		o.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.0.0.%d", last)}, {IP: fmt.Sprintf("fd00::%d", last)}}
		if f.starts != nil {
			f.starts(o)
		}
	case *corev1.Service:
		o.Spec.ClusterIPs = []string{"10.96.0.1", "fd00:96::1"}
		o.Spec.Ports[0].NodePort = 30000
	}
	f.objects[r.URL.Path+"/"+m.GetName()] = o
	answer(w, o)
}

func (f *fake) exec(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(r.URL.Path, "/") // the path is /api/v1/namespaces/NS/pods/client-0/exec
	namespace, name := parts[4], parts[6]
	from, _ := strconv.Atoi(strings.TrimPrefix(name, client+"-"))
	if f.runs != nil {
		f.runs(from)
	}
	execserver.Serve(w, r, func(
		command []string, stdin io.Reader, stdout, _ io.Writer, _ <-chan struct{},
	) error {
		if !slices.Equal(command, []string{"/usr/bin/weirctl", "probe", "run"}) {
			return errors.New("another command")
		}
		var probes []probe.Probe
		if err := json.NewDecoder(stdin).Decode(&probes); err != nil {
			return err
		}
		results := make([]probe.Result, len(probes))
		for i, p := range probes {
			results[i] = f.probe(namespace, from, p)
		}
		return json.NewEncoder(stdout).Encode(results)
	})
}

func (f *fake) probe(namespace string, from int, p probe.Probe) probe.Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	pod := func(i int) *corev1.Pod {
		o, _ := f.objects[fmt.Sprintf("/api/v1/namespaces/%s/pods/%s", namespace, podName(server, i))].(*corev1.Pod)
		return o
	}
	service, _ := f.objects["/api/v1/namespaces/"+namespace+"/services/"+serviceName].(*corev1.Service)
	to := -1
	result := probe.Result{OK: true}
	switch {
	case p.Kind == probe.Resolve:
		result.Answer = strings.Join(service.Spec.ClusterIPs, ",")
	case p.Kind != probe.Open:
		address := netip.MustParseAddrPort(p.To)
		for i := range f.nodes {
			ready := pod(i) != nil && slices.Contains(pod(i).Status.PodIPs, corev1.PodIP{IP: address.Addr().String()})
			if ready && address.Port() == probe.Port {
				to = i
			}
		}
		isService := address.Port() == servicePort && slices.Contains(service.Spec.ClusterIPs, address.Addr().String())
		if isService || int32(address.Port()) == service.Spec.Ports[0].NodePort {
			to, _ = strconv.Atoi(service.Spec.Selector[indexLabel])
		}
		if to < 0 || f.denies(namespace, from, to) {
			return probe.Result{Error: "no answer", Timeout: true}
		}
		if result.Answer = podName(server, to); p.Kind == probe.Large {
			result.Answer = "1450 bytes"
		}
	}
	if f.broken != nil {
		if why := f.broken(p, from, to); why != "" {
			return probe.Result{Error: why, Timeout: why == "no answer"}
		}
	}
	return result
}

func (f *fake) denies(namespace string, from, to int) bool {
	policy := func(name string) *networkingv1.NetworkPolicy {
		path := "/apis/networking.k8s.io/v1/namespaces/" + namespace + "/networkpolicies/" + name
		p, _ := f.objects[path].(*networkingv1.NetworkPolicy)
		return p
	}
	ignores := func(node int) bool { return f.ignores != nil && f.ignores(node) }
	if policy(egressPolicy) != nil && !ignores(from) {
		return true
	}
	if policy(denyPolicy) == nil || ignores(to) {
		return false
	}
	allow := policy(allowPolicy)
	return allow == nil ||
		allow.Spec.Ingress[0].From[0].PodSelector.MatchLabels[indexLabel] != fmt.Sprint(from)
}
