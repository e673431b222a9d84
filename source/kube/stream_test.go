package kube

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/deltas"
)

// TestStreams: in whatever way the watch on pods fails, the known pods are those of the last complete list, changed by
// the events after that list.
func TestStreams(t *testing.T) {
	server, config := newStreams(t)
	source := sourceOf(t, config)
	ctx, cancel := context.WithCancel(t.Context())
	states, done := make(chan *policy.Objects, 100), make(chan error, 1)
	all := deltas.NewSum()
	go func() {
		done <- source.Run(ctx, func(d *policy.Delta, _ error) {
			// A delta without pods is about other kinds of policies, and may come at any time.
			if o := all.Add(d); len(d.Pods) > 0 {
				states <- o
			}
		})
	}()
	answer := func(w podWatch) {
		t.Helper()
		select {
		case server.pods <- w:
		case <-time.After(3 * time.Minute):
			t.Fatal("the source doesn't watch pods")
		}
	}
	want := func(what string, pods ...string) {
		t.Helper()
		var got []string
		for {
			select {
			case o := <-states:
				got = nil
				for _, p := range o.Pods {
					got = append(got, p.Name+"="+p.Labels["app"])
				}
				if slices.Equal(got, pods) {
					return
				}
			case <-time.After(time.Minute):
				t.Fatalf("%s: the pods are %q, want %q", what, got, pods)
			}
		}
	}
	event := func(kind watch.EventType, name, app, version string) watch.Event {
		return watch.Event{Type: kind, Object: newPod(func(p *corev1.Pod) {
			p.Name, p.Labels, p.ResourceVersion = name, map[string]string{"app": app}, version
		})}
	}
	end := bookmark(&corev1.Pod{})

	dying := make(chan struct{})
	close(dying)
	answer(podWatch{events: []watch.Event{event(watch.Added, "a", "1", "3")}, end: dying})
	answer(podWatch{status: http.StatusInternalServerError})
	first := podWatch{events: []watch.Event{
		event(watch.Added, "a", "1", "3"), event(watch.Added, "b", "1", "4"), end,
	}, more: make(chan watch.Event), end: make(chan struct{})}
	answer(first)
	want("only a whole list counts", "a=1", "b=1")
	if len(states) > 0 {
		t.Error("there was a delta before the whole list")
	}

	first.more <- event(watch.Added, "c", "1", "8")
	want("a pod comes", "a=1", "b=1", "c=1")
	first.more <- event(watch.Modified, "c", "1", "9") // changes no field that policy needs
	first.more <- event(watch.Added, "c", "1", "9")
	first.more <- event(watch.Deleted, "b", "1", "10")
	want("a pod goes", "a=1", "c=1")
	first.more <- event(watch.Deleted, "b", "1", "10")
	if len(states) > 0 {
		t.Error("there is a delta without a change")
	}

	close(first.end)
	second := podWatch{more: make(chan watch.Event), end: make(chan struct{})}
	answer(second) // the watch continues after the last event
	second.more <- event(watch.Modified, "a", "2", "11")
	want("the watch goes on", "a=2", "c=1")

	gone := apierrors.NewResourceExpired("too old").ErrStatus
	second.more <- watch.Event{Type: watch.Error, Object: &gone}
	half := podWatch{events: []watch.Event{event(watch.Added, "d", "1", "20")}, end: dying}
	answer(half)
	third := podWatch{events: []watch.Event{
		event(watch.Added, "a", "2", "11"), event(watch.Added, "d", "2", "21"), end,
	}, more: make(chan watch.Event), end: make(chan struct{})}
	answer(third)
	want("a new list after 410", "a=2", "d=2")
	if err := source.Contact(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNoStreams: if the API server can't stream lists, the source asks once for the whole list of each kind.
func TestNoStreams(t *testing.T) {
	server, config := newStreams(t)
	server.unable = true
	source := sourceOf(t, config)
	ctx, cancel := context.WithCancel(t.Context())
	done, pods := make(chan error, 1), make(chan int, 100)
	go func() {
		done <- source.Run(ctx, func(d *policy.Delta, _ error) { pods <- len(d.Pods) })
	}()
	select {
	case n := <-pods:
		if n != 1 || server.lists.Load() != 4 {
			t.Errorf("the first delta has %d pods after %d lists", n, server.lists.Load())
		}
	case <-time.After(3 * time.Minute):
		t.Error("there is no first delta")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
