package kube

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
)

// TestAnnounceOnPod: repetitions with the same key only update the count of one event. If the API server has deleted
// the event, AnnounceOnPod makes a new one.
func TestAnnounceOnPod(t *testing.T) {
	client := fake.NewClientset()
	s := &Source{Client: client, Node: "node-1"}
	e := agentapi.PodEvent{
		Key: "k", Pod: endpoint.Pod{Namespace: "shop", Name: "db", UID: "1"}, Reason: "PacketsDropped", Note: "dropped",
		Count: 1, First: time.Unix(1000, 0), Last: time.Unix(1000, 0),
	}
	announce := func(count uint64) {
		t.Helper()
		e.Count, e.Last = count, e.Last.Add(time.Minute)
		if err := s.AnnounceOnPod(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	announce(1)
	announce(7)
	events := client.EventsV1().Events("shop")
	list, err := events.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%v, %+v", err, list)
	}
	got := list.Items[0]
	if o := got.Regarding; o.Kind != "Pod" || o.Name != "db" || o.UID != "1" || got.Type != corev1.EventTypeWarning ||
		got.Reason != "PacketsDropped" || got.Note != "dropped" || got.Action == "" || got.ReportingInstance != "node-1" ||
		got.Series == nil || got.Series.Count != 7 {
		t.Errorf("%+v", got)
	}
	if err := events.Delete(t.Context(), got.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	announce(9)
	if list, err = events.List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 1 ||
		list.Items[0].Name == got.Name {
		t.Errorf("%v, %+v", err, list)
	}
	e.Key, e.Pod.Name = "long", strings.Repeat("a", 199)+"-"+strings.Repeat("b", 53)
	announce(1)
	list, err = events.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 2 {
		t.Fatalf("%v, %+v", err, list)
	}
	for _, made := range list.Items {
		if wrong := validation.IsDNS1123Subdomain(made.Name); len(wrong) > 0 {
			t.Errorf("%s: %v", made.Name, wrong)
		}
	}
}
