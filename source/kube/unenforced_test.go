package kube

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weir-net/weir/policy"
)

func serving(t *testing.T, away *atomic.Bool, kinds map[string]string) *Source {
	t.Helper()
	groups := map[string][]string{} // kinds by group and version
	for kind := range kinds {
		name, version, _ := strings.Cut(kind, ".")
		groups[version] = append(groups[version], name)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		write := func(v any) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v)
		}
		type m = map[string]any
		path := strings.TrimPrefix(r.URL.Path, "/apis")
		switch {
		case away.Load():
			http.Error(w, "away", http.StatusServiceUnavailable)
		case r.URL.Path == "/api":
			write(m{"kind": "APIVersions", "versions": []string{}})
		case path == "":
			var list []m
			for gv := range groups {
				group, version, _ := strings.Cut(gv, "/")
				v := m{"groupVersion": gv, "version": version}
				list = append(list, m{"name": group, "versions": []m{v}, "preferredVersion": v})
			}
			write(m{"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
		case groups[path[1:]] != nil:
			var list []m
			for _, kind := range groups[path[1:]] {
				list = append(list,
					m{"name": strings.ToLower(kind) + "s", "kind": kind, "namespaced": true, "verbs": []string{"list"}},
					m{"name": strings.ToLower(kind) + "s/status", "kind": kind, "namespaced": true, "verbs": []string{"get"}})
			}
			write(m{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": path[1:], "resources": list})
		default:
			for kind, have := range kinds {
				name, gv, _ := strings.Cut(kind, ".")
				if path != "/"+gv+"/"+strings.ToLower(name)+"s" || r.URL.Query().Get("limit") != "1" {
					continue
				}
				n := 0
				_, _ = fmt.Sscan(have, &n)
				switch {
				case have == "forbidden":
					w.WriteHeader(http.StatusForbidden)
					write(m{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403})
				case have == "broken":
					http.Error(w, "broken", http.StatusInternalServerError)
				case n == 0:
					write(m{"items": []m{}})
				default:
					write(m{"metadata": m{"continue": "x", "remainingItemCount": n - 1}, "items": []m{{}}})
				}
				return
			}
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	s := &Source{Log: slog.Default()}
	config := &rest.Config{Host: server.URL, QPS: -1}
	config.Wrap(s.Transport)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	s.Client = client
	return s
}

func TestUnenforcedKinds(t *testing.T) {
	s := serving(t, new(atomic.Bool), map[string]string{
		"CiliumNetworkPolicy.cilium.io/v2": "3", "CiliumEndpoint.cilium.io/v2": "9",
		"AdminNetworkPolicy.policy.networking.k8s.io/v1alpha1": "0",
		"GlobalNetworkPolicy.crd.projectcalico.org/v1":         "forbidden", "NetworkPolicy.crd.antrea.io/v1beta1": "broken",
		"NetworkPolicy.networking.k8s.io/v1": "7", "ZNetworkPolicy.example.com/v1": "1",
	})
	kinds, err := s.unenforcedKinds(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []policy.Unenforced{
		{Kind: "CiliumNetworkPolicy.cilium.io", Where: "in the cluster", Count: 3},
		{
			Kind:  "GlobalNetworkPolicy.crd.projectcalico.org",
			Where: "the cluster serves this kind, and weir may not list how many there are",
		},
		{Kind: "NetworkPolicy.crd.antrea.io", Where: "the cluster serves this kind; how many there are can't be read"},
		{Kind: "ZNetworkPolicy.example.com", Where: "in the cluster", Count: 1},
	}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Error(diff)
	}
}

// TestSurvey: until a survey (which other kinds of policies the cluster has) succeeds, the result is notSurveyed. A
// survey's failure doesn't change the result of Contact.
func TestSurvey(t *testing.T) {
	var away atomic.Bool
	away.Store(true)
	s := serving(t, &away,
		map[string]string{"CiliumNetworkPolicy.cilium.io/v2": "1", "XNetworkPolicy.example.com/v1": "forbidden"})
	changed := make(chan bool, 10)
	go s.survey(t.Context(), func() { changed <- true })
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Fatal("the survey didn't end")
	}
	if diff := cmp.Diff(notSurveyed, *s.unenforced.Load()); diff != "" {
		t.Error(diff)
	}
	away.Store(false)
	if _, err := s.unenforcedKinds(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Contact(); err != nil {
		t.Errorf("contact: %v", err)
	}
}
