package kube

import (
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestAnnounce: Announce makes a warning event on the Node. The event has the UID by which "kubectl describe node"
// finds events.
func TestAnnounce(t *testing.T) {
	client := fake.NewClientset()
	s := &Source{Client: client, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Node: "node-1"}
	s.Announce(t.Context(), "NoPodAddresses", "all 253 are assigned")
	find := func() error {
		list, err := client.CoreV1().Events(corev1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if o := e.InvolvedObject; o.Kind == "Node" && o.Name == "node-1" && o.UID == "node-1" &&
				e.Type == corev1.EventTypeWarning && e.Reason == "NoPodAddresses" && e.Message == "all 253 are assigned" {
				return nil
			}
		}
		return errors.New("there is no such event")
	}
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err = find(); err == nil {
			return
		}
	}
	t.Error(err)
}
