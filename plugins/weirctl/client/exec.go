package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

type Command struct {
	Namespace, Pod, Container string
	Args                      []string
}

// Exec runs the command until it ends, or until ctx ends. stdin may be nil.
//
// Equivalent to: kubectl exec --namespace NAMESPACE POD --container CONTAINER -- ARGS
func (a *API) Exec(ctx context.Context, c Command, stdin io.Reader, stdout io.Writer) error {
	url := a.clients[core].Post().Namespace(c.Namespace).Resource("pods").Name(c.Pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: c.Container, Command: c.Args, Stdin: stdin != nil, Stdout: true, Stderr: true,
		}, runtime.NewParameterCodec(a.scheme)).URL()
	config := rest.CopyConfig(a.config)
	config.ContentType, config.AcceptContentTypes = "", ""
	overWebSocket, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, url.String())
	if err != nil {
		return fmt.Errorf("prepare to run a command in a pod: %w", err)
	}
	overSPDY, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, url) // for older API servers
	if err != nil {
		return fmt.Errorf("prepare to run a command in a pod: %w", err)
	}
	var refused error // why the API server has refused the first attempt
	executor, err := remotecommand.NewFallbackExecutor(overWebSocket, overSPDY, func(err error) bool {
		if failure := (*httpstream.UpgradeFailureError)(nil); errors.As(err, &failure) {
			refused = failure.Cause
			return true
		}
		return httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return fmt.Errorf("prepare to run a command in a pod: %w", err)
	}
	errs := &bounded{most: 4 << 10}
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: stdout, Stderr: errs})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && apierrors.ReasonForError(refused) != metav1.StatusReasonUnknown && errs.String() == "" {
		err = refused // err is from the second attempt, and has the API server's text without the reason
	}
	return a.execError(c, err, errs.String())
}

func (a *API) execError(c Command, err error, stderr string) error {
	if err == nil {
		return nil
	}
	var status *apierrors.StatusError
	switch stderr = strings.TrimSpace(stderr); {
	case apierrors.IsForbidden(err):
		return &forbiddenError{fmt.Sprintf("you may not run commands in pods of %s, which this command needs: ask an "+
			"administrator (check with: kubectl auth can-i create pods --subresource=exec -n %s)", c.Namespace, c.Namespace)}
	case apierrors.IsUnauthorized(err):
		return &forbiddenError{fmt.Sprintf("the API server %s doesn't accept your credentials: log in again (check with: "+
			"kubectl auth whoami)", a.Host)}
	case apierrors.IsNotFound(err):
		return fmt.Errorf("the pod %s/%s is gone", c.Namespace, c.Pod)
	case stderr != "":
		lines := strings.Split(stderr, "\n")
		return errors.New(strings.TrimPrefix(lines[len(lines)-1], "weirctl: "))
	case errors.As(err, &status):
		return fmt.Errorf("the API server can't run a command in %s/%s: %s", c.Namespace, c.Pod, firstLine(err))
	}
	return fmt.Errorf("run a command in %s/%s: %s", c.Namespace, c.Pod, firstLine(err))
}

// forbiddenError means that the API server refuses the user's commands in pods or the user's credentials, so there is
// no use in asking another node.
type forbiddenError struct{ message string }

func (e *forbiddenError) Error() string { return e.message }

// IsForbidden reports whether the API server has refused the user's commands in pods or the user's credentials.
func IsForbidden(err error) bool { return errors.As(err, new(*forbiddenError)) }

// bounded is a writer that keeps the first bytes, up to the number most, and discards the rest. It reports all bytes as
// written.
type bounded struct {
	mu   sync.Mutex
	most int
	kept bytes.Buffer
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept.Write(p[:min(len(p), b.most-b.kept.Len())])
	return len(p), nil
}

func (b *bounded) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kept.String()
}
