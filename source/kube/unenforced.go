package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/source/objects"
)

const (
	// survey is how often the API server is asked for kinds of policy that weir doesn't enforce: one request for what
	// it serves, and one of a few hundred bytes for each such kind. Each time it is put off by up to as much, so that
	// the nodes of a large cluster don't ask at once.
	survey = 150 * time.Second
	// surveyAgain is how soon it is asked again if it didn't answer.
	surveyAgain = 15 * time.Second
)

// notSurveyed is said until the API server has answered.
var notSurveyed = []policy.Unenforced{{
	Where: "which policies of other kinds the cluster has isn't known: the API server doesn't say which kinds it serves",
}}

// aside marks requests that are no part of a watch, and whose failure says nothing of one.
type aside struct{}

// survey keeps what is known of policies that weir doesn't enforce, until ctx ends. changed is called when that
// changes.
func (s *Source) survey(ctx context.Context, changed func()) {
	for {
		next := survey + rand.N(survey)
		found, err := s.unenforcedKinds(ctx)
		if err != nil {
			next = surveyAgain
			if known := s.unenforced.Load(); known == nil {
				found = notSurveyed
			} else {
				found = *known // the API server is away, which is said elsewhere
			}
		}
		before := s.unenforced.Swap(&found)
		if before == nil && len(found) > 0 || before != nil && !slices.Equal(*before, found) {
			changed()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

// unenforcedKinds are the kinds of policy that the API server serves, that weir doesn't enforce, and of which there are
// objects or may be.
//
// Equivalent to: kubectl api-resources; kubectl get RESOURCE --all-namespaces --limit 1, for each
func (s *Source) unenforcedKinds(ctx context.Context) ([]policy.Unenforced, error) {
	ctx = context.WithValue(ctx, aside{}, true)
	// What an API service that is down would serve is unknown; the others are told all the same.
	_, lists, err := s.Client.Discovery().ServerGroupsAndResources()
	if len(lists) == 0 {
		return nil, fmt.Errorf("ask the API server what it serves: %w", err)
	}
	found := []policy.Unenforced{}
	seen := map[string]bool{}
	for _, list := range lists {
		version, bad := schema.ParseGroupVersion(list.GroupVersion)
		if bad != nil {
			continue
		}
		for _, r := range list.APIResources {
			kind := r.Kind + "." + version.Group
			if strings.Contains(r.Name, "/") || !objects.IsPolicy(version.Group, r.Kind) || seen[kind] {
				continue
			}
			seen[kind] = true
			u := policy.Unenforced{Kind: kind, Where: "in the cluster"}
			var uncounted error
			u.Count, uncounted = s.count(ctx, version.WithResource(r.Name))
			switch {
			case uncounted == nil && u.Count == 0:
				continue
			case apierrors.IsForbidden(uncounted):
				u.Where = "the cluster serves this kind, and weir may not list how many there are"
			case uncounted != nil:
				u.Where = "the cluster serves this kind; how many there are can't be read"
			}
			found = append(found, u)
		}
	}
	slices.SortFunc(found, func(a, b policy.Unenforced) int { return strings.Compare(a.Kind, b.Kind) })
	if err != nil {
		found = append(found, policy.Unenforced{
			Where: "some of the API server's services don't say which kinds they serve; there may be policies among them",
		})
	}
	return found, nil
}

// count is how many objects there are of a resource. Of these the API server sends one, and of that the metadata.
func (s *Source) count(ctx context.Context, r schema.GroupVersionResource) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	raw, err := s.Client.CoreV1().RESTClient().Get().AbsPath("/apis", r.Group, r.Version, r.Resource).Param("limit", "1").
		SetHeader("Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json").DoRaw(ctx)
	if err != nil {
		return 0, err
	}
	var list struct {
		Metadata struct {
			RemainingItemCount int `json:"remainingItemCount"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return 0, err
	}
	return len(list.Items) + list.Metadata.RemainingItemCount, nil
}
