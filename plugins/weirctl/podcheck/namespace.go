package podcheck

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type Times struct {
	// Poll is the wait before objects are read again, or failed attempts are repeated.
	Poll time.Duration
	// Alive is how often a check gives a sign of life in its namespace. If a check gives no sign for three times as
	// long, the next check removes the namespace.
	Alive time.Duration
	// Starts is how long pods may take to start. Applies is how long a policy may take until it applies.
	Starts, Applies time.Duration
	// Reach is the time limit of a connection while there are no policies yet. Denied is the time limit of a connection
	// after the check has made policies. A connection without an answer within Denied counts as denied.
	Reach, Denied time.Duration
	// Removes is how long the removal of the namespace may take.
	Removes time.Duration
}

var DefaultTimes = Times{
	Poll: 300 * time.Millisecond, Alive: 3 * time.Second, Starts: time.Minute, Applies: 20 * time.Second,
	Reach: 3 * time.Second, Denied: time.Second, Removes: 45 * time.Second,
}

func newName() string { return fmt.Sprintf("weir-check-%06x", rand.IntN(1<<24)) }

// leftover is a namespace of another check, as it was when this check began.
type leftover struct {
	uid, alive string
	seen       time.Time
}

func (c *Check) listNamespaces(ctx context.Context) (map[string]leftover, error) {
	all := map[string]leftover{}
	var list corev1.NamespaceList
	options := metav1.ListOptions{LabelSelector: CheckLabel + "=true"}
	err := c.List(ctx, namespaces, "", options, &list, func() {
		for _, n := range list.Items {
			if n.DeletionTimestamp == nil {
				all[n.Name] = leftover{string(n.UID), n.Annotations[aliveAnnotation], time.Now()}
			}
		}
		list = corev1.NamespaceList{ListMeta: list.ListMeta}
	})
	return all, err
}

// removeLeftovers removes the namespaces of checks that give no sign of life while it waits. It waits instead of
// comparing times in the namespaces, because the clocks of machines differ.
func (c *Check) removeLeftovers(ctx context.Context, seen map[string]leftover) (removed []string, err error) {
	if len(seen) == 0 {
		return nil, nil
	}
	for _, was := range seen {
		wait(ctx, time.Until(was.seen.Add(3*c.Times.Alive)))
	}
	now, err := c.listNamespaces(ctx)
	if err != nil {
		return nil, err
	}
	for name, was := range seen {
		if is, ok := now[name]; !ok || is.uid != was.uid || is.alive != was.alive {
			continue
		}
		if err := c.Delete(ctx, namespaces, "", name); err != nil {
			return removed, err
		}
		removed = append(removed, name)
	}
	return removed, nil
}

func (c *Check) stayAlive(ctx context.Context, namespace string) {
	for i := 1; wait(ctx, c.Times.Alive); i++ {
		// An error doesn't matter, because the next round tries again. While the API server doesn't answer, no other check
		// can remove this namespace.
		_ = c.Annotate(ctx, namespaces, "", namespace, [2]string{aliveAnnotation, fmt.Sprint(i)})
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

func (c *Check) remove(ctx context.Context, namespace string) error {
	ctx, cancel := context.WithTimeout(ctx, c.Times.Removes)
	defer cancel()
	for err := c.Delete(ctx, namespaces, "", namespace); err != nil; err = c.Delete(ctx, namespaces, "", namespace) {
		if !wait(ctx, c.Times.Poll) {
			return fmt.Errorf("the namespace %s is left (kubectl delete namespace %s): %w", namespace, namespace, err)
		}
	}
	for {
		err := c.Get(ctx, namespaces, "", namespace, &corev1.Namespace{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if !wait(ctx, c.Times.Poll) {
			return fmt.Errorf("the API server still removes the namespace %s (kubectl get namespace %s)", namespace, namespace)
		}
	}
}
