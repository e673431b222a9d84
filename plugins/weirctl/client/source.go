package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/policy/explain"
)

// Source says where a command's objects come from: this node's agent, the API server, or a directory of manifests.
type Source struct {
	// Place is agent, kubernetes, dir:PATH, or empty. Empty means the API server if Kubeconfig or Context is set,
	// or if this machine has no socket of an agent. Otherwise, empty means the agent.
	Place string
	// Kubeconfig is a path, and Context a context in that file. Both may be empty.
	Kubeconfig, Context string
}

func (s *Source) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&s.Place, "source", "",
		"where objects come from: agent, kubernetes, or dir:PATH, a directory of manifests; default: the agent if one is "+
			"on this node, else the API server")
	flags.StringVar(&s.Kubeconfig, "kubeconfig", "", "kubeconfig file for the API server; default: as kubectl finds it")
	flags.StringVar(&s.Context, "context", "", "context in the kubeconfig; default: the current one")
}

// Values of Source.Place. A path follows dirPlace.
const (
	placeAgent      = "agent"
	placeKubernetes = "kubernetes"
	dirPlace        = "dir:"
)

type Kind string

const (
	FromAgent      Kind = "agent"
	FromKubernetes Kind = "kubernetes"
	FromDirectory  Kind = "directory"
)

// Kind returns the kind of the source, and for FromDirectory the directory's path. A wrong Place is a usage error.
func (s *Source) Kind() (kind Kind, path string, err error) {
	path, isDir := strings.CutPrefix(s.Place, dirPlace)
	switch {
	case isDir && path != "":
		return FromDirectory, path, nil
	case s.Place == placeAgent:
		return FromAgent, "", nil
	case s.Place == placeKubernetes:
		return FromKubernetes, "", nil
	case s.Place != "":
		return "", "", Usage(fmt.Errorf("--source %q: must be agent, kubernetes or dir:PATH", s.Place))
	case s.Kubeconfig != "" || s.Context != "":
		return FromKubernetes, "", nil
	}
	if _, err := os.Stat(agentapi.Socket); err == nil || errors.Is(err, os.ErrPermission) {
		return FromAgent, "", nil
	}
	return FromKubernetes, "", nil
}

// Load reads all objects of the source. If the user may not list the objects of all namespaces, Load reads those of the
// given namespaces, and Gaps names what is missing. The error is one line that says what to do. The error wraps
// agentapi.ErrNoAgent if there is no agent.
func (s *Source) Load(ctx context.Context, namespaces ...string) (explain.Cluster, error) {
	kind, path, err := s.Kind()
	if err != nil {
		return explain.Cluster{}, err
	}
	switch kind {
	case FromDirectory:
		return loadDirectory(ctx, path)
	case FromKubernetes:
		return s.loadKubernetes(ctx, namespaces)
	}
	var c explain.Cluster
	if err := Post(ctx, agentapi.ObjectsPath, nil, &c); err != nil {
		return explain.Cluster{}, Hinted(err, HintSource)
	}
	return c, nil
}

// A command passes one of these hints to Hinted, which adds the hint to an error. The hint must name only flags
// that the command has.
const (
	HintSource  = "use --source kubernetes on other machines, or --source dir:PATH for files"
	HintCluster = "--cluster asks the agents of all nodes"
	HintNode    = HintCluster + ", and --node NAME that of one"
)

// Hinted adds advice to the error of a request to this node's agent. hint says which flags help if there is no agent.
func Hinted(err error, hint string) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s may not be opened: run weirctl as root: %w", agentapi.Socket, os.ErrPermission)
	case errors.Is(err, agentapi.ErrNoAgent):
		return fmt.Errorf("%w: weirctl asks the agent of the node that it runs on; %s", agentapi.ErrNoAgent, hint)
	}
	return err
}

type answerError struct {
	status  int
	message string
}

// WrongInput returns the agent's message if the agent has refused the question as wrong.
func WrongInput(err error) (message string, wrong bool) {
	var e *answerError
	if errors.As(err, &e) && e.status == http.StatusBadRequest {
		return e.message, true
	}
	return "", false
}

func (e *answerError) Error() string {
	if e.status == http.StatusNotFound && e.message == "" {
		return "the agent on this node is older than weirctl and doesn't know this command: update it"
	}
	return e.message
}
