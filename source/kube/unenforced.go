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
	// surveyInterval is how long the source waits at least before it asks the API server again for other kinds of
	// policies. A random delay is added, so that the nodes of a large cluster don't all ask at once.
	surveyInterval = 150 * time.Second
	// surveyRetry is how long the source waits after a failed survey.
	surveyRetry = 15 * time.Second
)

// notSurveyed is the result until the API server has said which kinds of policies it serves.
var notSurveyed = []policy.Unenforced{{
	Where: "which policies of other kinds the cluster has isn't known: the API server doesn't say which kinds it serves",
}}

// noWatch is the key of a context whose requests aren't part of a watch. Contact doesn't return errors of such
// requests.
type noWatch struct{}

func (s *Source) survey(ctx context.Context, changed func()) {
	for {
		next := surveyInterval + rand.N(surveyInterval)
		kinds, err := s.unenforcedKinds(ctx)
		if err != nil {
			next = surveyRetry
			if known := s.unenforced.Load(); known == nil {
				kinds = notSurveyed
			} else {
				kinds = *known // keep the last result; Contact reports that the API server doesn't answer
			}
		}
		before := s.unenforced.Swap(&kinds)
		if before == nil && len(kinds) > 0 || before != nil && !slices.Equal(*before, kinds) {
			changed()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

// unenforcedKinds returns the kinds of policies that weir doesn't enforce, such as CiliumNetworkPolicy. It returns only
// kinds with objects in the cluster.
//
// Equivalent to: kubectl api-resources; for each kind: kubectl get --raw '/apis/GROUP/VERSION/RESOURCE?limit=1'
func (s *Source) unenforcedKinds(ctx context.Context) ([]policy.Unenforced, error) {
	ctx = context.WithValue(ctx, noWatch{}, true)
	// If one of the API server's services is down, this call returns an error and the kinds of all other services.
	_, lists, err := s.Client.Discovery().ServerGroupsAndResources()
	if len(lists) == 0 {
		return nil, fmt.Errorf("ask the API server what it serves: %w", err)
	}
	kinds := []policy.Unenforced{}
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
			kinds = append(kinds, u)
		}
	}
	slices.SortFunc(kinds, func(a, b policy.Unenforced) int { return strings.Compare(a.Kind, b.Kind) })
	if err != nil {
		kinds = append(kinds, policy.Unenforced{
			Where: "some of the API server's services don't say which kinds they serve; there may be policies among them",
		})
	}
	return kinds, nil
}

func (s *Source) count(ctx context.Context, r schema.GroupVersionResource) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	get := s.Client.CoreV1().RESTClient().Get().AbsPath("/apis", r.Group, r.Version, r.Resource).Param("limit", "1")
	const metadataOnly = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
	raw, err := get.SetHeader("Accept", metadataOnly).DoRaw(ctx)
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
