package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-net/weir/agentapi"
)

// maxEventNames limits how many events the source remembers, to count their repetitions. At the limit, the source
// forgets all of them.
const maxEventNames = 4096

// AnnounceOnPod makes a warning event on the pod. If there is an event with the same key, it only updates that event's
// count. It waits for the API server, at most for requestTimeout. Only one goroutine may call it.
//
// To see the event: kubectl describe pod POD; kubectl get events.events.k8s.io -n NAMESPACE
func (s *Source) AnnounceOnPod(ctx context.Context, e agentapi.PodEvent) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	events := s.Client.EventsV1().Events(e.Pod.Namespace)
	if name := s.eventNames[e.Key]; name != "" {
		patch, err := json.Marshal(map[string]any{"series": eventsv1.EventSeries{
			Count: int32(min(e.Count, 1<<31-1)), LastObservedTime: metav1.NewMicroTime(e.Last),
		}})
		if err != nil {
			return err
		}
		_, err = events.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
		// The API server deletes events after an hour. A deleted event is made anew below.
		if err == nil || !apierrors.IsNotFound(err) {
			return err
		}
	}
	pod := strings.TrimRight(e.Pod.Name[:min(len(e.Pod.Name), 200)], "-.")
	made, err := events.Create(ctx, &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: e.Pod.Namespace, Name: fmt.Sprintf("%s.%x", pod, time.Now().UnixNano())},
		EventTime:  metav1.NewMicroTime(e.First), ReportingController: "weir.io/weir-agent", ReportingInstance: s.Node,
		Action: "Drop", Reason: e.Reason, Type: corev1.EventTypeWarning, Note: e.Note,
		Regarding: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: e.Pod.Namespace, Name: e.Pod.Name, UID: types.UID(e.Pod.UID),
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if s.eventNames == nil || len(s.eventNames) >= maxEventNames {
		s.eventNames = map[string]string{}
	}
	s.eventNames[e.Key] = made.Name
	return nil
}
