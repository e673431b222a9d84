package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

const (
	agentContainer = "weir-agent"
	// AgentNamespace is the default namespace of weir's pods.
	AgentNamespace = "kube-system"
)

var agentLabels = labels.Set{"k8s-app": "weir"}

// Cluster asks agents on other nodes. It runs `weirctl connect` in the agent's pod, as kubectl exec does, so no
// node needs an open port.
type Cluster struct {
	*API
	Namespace string
}

type NodeFlags struct {
	Source
	Namespace string
	Parallel  int
}

func (f *NodeFlags) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&f.Kubeconfig, "kubeconfig", "", "kubeconfig file for the API server; default: as kubectl finds it")
	flags.StringVar(&f.Context, "context", "", "context in the kubeconfig; default: the current one")
	flags.StringVar(&f.Namespace, "weir-namespace", AgentNamespace, "the namespace of weir's pods")
	flags.IntVar(&f.Parallel, "parallel", defaultParallel, "how many nodes to ask at the same time")
}

// Cluster returns a Cluster with the values of the flags. It sends no request.
func (f *NodeFlags) Cluster() (*Cluster, error) {
	if f.Parallel < 1 {
		return nil, Usage(fmt.Errorf("--parallel %d: must be 1 or more", f.Parallel))
	}
	config, err := f.Config()
	if err != nil {
		return nil, err
	}
	api, err := NewAPI(config)
	if err != nil {
		return nil, err
	}
	return &Cluster{api, f.Namespace}, nil
}

func (f *NodeFlags) Agents(ctx context.Context) (*Cluster, []Agent, error) {
	cluster, err := f.Cluster()
	if err != nil {
		return nil, nil, err
	}
	agents, err := cluster.Agents(ctx)
	return cluster, agents, err
}

type Agent struct {
	Node string
	// Pod is the agent's pod. It is empty if the node has none.
	Pod   string
	Image string
	// Down says why the agent can't be asked. It is empty if the agent can be asked.
	Down string
	// Away says what the API server reports as wrong with the node. It may be empty.
	Away string
}

// Agents returns the agents of all nodes on which weir should run, in the order of the nodes' names. If the user may
// not list Nodes, nodes without a pod of weir are missing.
func (c *Cluster) Agents(ctx context.Context) ([]Agent, error) {
	by := map[string]*Agent{}
	if err := c.addNodes(ctx, by); err != nil {
		return nil, err
	}
	best := map[string]*corev1.Pod{}
	var pods corev1.PodList
	options := metav1.ListOptions{LabelSelector: agentLabels.String()}
	err := c.eachOf(ctx, core.WithResource("pods"), c.Namespace, options, &pods, func() {
		for i := range pods.Items {
			p := &pods.Items[i]
			if node := p.Spec.NodeName; node != "" && (best[node] == nil || rank(p) > rank(best[node])) {
				best[node] = p
			}
		}
		pods = corev1.PodList{ListMeta: pods.ListMeta}
	})
	if err != nil {
		return nil, c.listError(ctx, "pods", c.Namespace, err)
	}
	if len(best) == 0 {
		return nil, fmt.Errorf("there are no pods of weir (%s) in the namespace %s: is weir installed? (--weir-namespace "+
			"names another one)", agentLabels, c.Namespace)
	}
	for node, p := range best {
		if by[node] == nil {
			by[node] = &Agent{Node: node}
		}
		by[node].Pod, by[node].Down = p.Name, whyDown(p)
		for _, container := range p.Spec.Containers {
			if container.Name == agentContainer {
				by[node].Image = container.Image
			}
		}
	}
	all := make([]Agent, 0, len(by))
	for _, a := range by {
		all = append(all, *a)
	}
	slices.SortFunc(all, func(a, b Agent) int { return cmp.Compare(a.Node, b.Node) })
	return all, nil
}

func (c *Cluster) addNodes(ctx context.Context, by map[string]*Agent) error {
	var nodes corev1.NodeList
	err := c.each(ctx, core.WithResource("nodes"), "", &nodes, func() {
		for _, n := range nodes.Items {
			if os := n.Labels[corev1.LabelOSStable]; os == "" || os == "linux" {
				by[n.Name] = &Agent{Node: n.Name, Down: "no pod of weir runs on this node", Away: whyAway(&n)}
			}
		}
		nodes = corev1.NodeList{ListMeta: nodes.ListMeta}
	})
	if err != nil && !apierrors.IsForbidden(err) {
		return c.listError(ctx, "nodes", "", err)
	}
	return nil
}

func whyAway(n *corev1.Node) string {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return strings.TrimSuffix(fmt.Sprintf("the node is not ready: %s", cmp.Or(c.Message, c.Reason)), ": ")
		}
	}
	return ""
}

// rank returns a number for a pod of weir. Of a node's pods, Agents takes the pod with the highest rank. Any pod in
// which commands can run ranks above all other pods. Next, a pod that isn't ending ranks above one that is. Last, a
// newer pod ranks above an older one.
func rank(p *corev1.Pod) int64 {
	r := p.CreationTimestamp.Unix()
	if p.DeletionTimestamp == nil {
		r += 1 << 40
	}
	if whyDown(p) == "" {
		r += 1 << 41
	}
	return r
}

// whyDown returns why no command can run in the agent's container. It returns "" if commands can run.
func whyDown(p *corev1.Pod) string {
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		switch state := s.State; {
		case state.Waiting != nil && state.Waiting.Reason != "PodInitializing":
			return strings.TrimSuffix(fmt.Sprintf("the container %s of %s doesn't run: %s: %s", s.Name, p.Name,
				state.Waiting.Reason, state.Waiting.Message), ": ")
		case state.Terminated != nil && s.Name == agentContainer:
			return fmt.Sprintf("the container %s of %s has ended: %s (exit code %d)", s.Name, p.Name,
				state.Terminated.Reason, state.Terminated.ExitCode)
		case state.Running != nil && s.Name == agentContainer:
			return ""
		}
	}
	phase := cmp.Or(p.Status.Phase, corev1.PodPending)
	return fmt.Sprintf("the pod %s doesn't run yet: %s", p.Name, cmp.Or(p.Status.Reason, string(phase)))
}

// Open asks the agent, and returns its answer as it comes. The caller must close the body, which ends the command
// in the agent's pod. The error is one line.
//
// Equivalent to: kubectl exec --stdin POD --container weir-agent -- weirctl connect, with an HTTP request as its
// input
func (c *Cluster) Open(ctx context.Context, of Agent, method, path string, body []byte) (*http.Response, error) {
	if of.Down != "" {
		return nil, errors.New(cmp.Or(of.Away, of.Down))
	}
	ctx, cancel := context.WithCancel(ctx)
	request, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		cancel()
		return nil, err
	}
	request.Close = true
	request.Header.Set("Content-Type", "application/json")
	var question bytes.Buffer
	if err := request.Write(&question); err != nil {
		cancel()
		return nil, err
	}
	in, out := io.Pipe()
	var running sync.WaitGroup
	running.Go(func() {
		err := c.Exec(ctx, Command{c.Namespace, of.Pod, agentContainer, []string{"weirctl", "connect"}}, &question, out)
		_ = out.CloseWithError(err)
	})
	end := func() {
		cancel()
		_ = in.Close()
		running.Wait()
	}
	answer := bufio.NewReader(in)
	response, err := http.ReadResponse(answer, request)
	if err != nil {
		end()
		return nil, c.away(of, err)
	}
	response.Body = &answerBody{response.Body, func(whole bool) {
		if whole { // the answer was read to its end, so the command ends by itself
			timeout := time.AfterFunc(endsWithin, cancel)
			defer timeout.Stop()
			_, _ = io.Copy(io.Discard, answer)
		}
		end()
	}, false}
	return response, nil
}

const endsWithin = time.Second

// answerBody remembers whether the answer was read to its end.
type answerBody struct {
	io.Reader
	end   func(whole bool)
	whole bool
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.whole = b.whole || errors.Is(err, io.EOF)
	return n, err
}

// Close ends the command in the agent's pod. If the answer was read to its end, Close first waits up to endsWithin for
// the command to end by itself.
func (b *answerBody) Close() error {
	b.end(b.whole)
	return nil
}

// away returns why an agent could not be asked. If the API server has reported a fault of the node, away usually
// returns this fault instead of err.
func (c *Cluster) away(of Agent, err error) error {
	switch {
	case errors.As(err, new(*forbiddenError)):
		return err
	case strings.Contains(err.Error(), `unknown command "connect"`):
		return errors.New("weir on this node is older than weirctl and doesn't know this command: update it")
	case of.Away != "":
		return errors.New(of.Away)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("the pod %s has ended without an answer", of.Pod)
	}
	return err
}

// Ask asks the agent and decodes its answer. A nil question sends a GET. The error is one line.
func (c *Cluster) Ask(ctx context.Context, of Agent, path string, question, into any) error {
	method, body := http.MethodGet, []byte(nil)
	if question != nil {
		var err error
		if body, err = json.Marshal(question); err != nil {
			return err
		}
		method = http.MethodPost
	}
	response, err := c.Open(ctx, of, method, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return c.away(of, err)
	}
	if response.StatusCode != http.StatusOK {
		return refusal(response.StatusCode, answer)
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("the agent's answer (%d bytes) is no JSON: %w", len(answer), err)
	}
	return nil
}

const maxAnswer = 64 << 20

// Find returns the agent of the node. An unknown node is a usage error.
func Find(agents []Agent, node string) (Agent, error) {
	for _, a := range agents {
		if a.Node == node {
			return a, nil
		}
	}
	return Agent{}, Usage(fmt.Errorf("there is no node %q (kubectl get nodes lists them)", node))
}
