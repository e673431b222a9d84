package kube

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
)

// contact has the result of the last request of each watch. Reflectors don't report that the API server is
// away.
type contact struct {
	mu   sync.Mutex
	errs map[string]error // by path
}

// Transport wraps the client's transport (rest.Config.Wrap). It records for Contact whether the API server
// answers watches. It also removes fields that the source doesn't need from the events of watches on pods and
// nodes.
func (s *Source) Transport(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		if err == nil {
			trimmed(r, resp)
		}
		if r.Context().Value(noWatch{}) != nil {
			return resp, err
		}
		q := r.URL.Query()
		ofWatch := q.Has("watch") || q.Has("resourceVersion") || q.Has("limit") // a watch begins with a list
		if !ofWatch || (err != nil && r.Context().Err() != nil) {
			return resp, err
		}
		failed := err
		if err == nil && resp.StatusCode >= http.StatusBadRequest && !recovers(resp.StatusCode) {
			failed = fmt.Errorf("%s %s: %s", r.Method, r.URL.Path, resp.Status)
		}
		s.contact.set(r.URL.Path, failed)
		return resp, err
	})
}

// recovers reports whether the watch goes on by itself after an answer with this status.
func recovers(status int) bool {
	return status == http.StatusGone || status == http.StatusTooManyRequests
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (c *contact) set(path string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.errs == nil {
		c.errs = map[string]error{}
	}
	delete(c.errs, path)
	if err != nil {
		c.errs[path] = err
	}
}

// Contact returns an error if the last request of a watch has failed. The error has each cause once.
func (s *Source) Contact() error {
	s.contact.mu.Lock()
	defer s.contact.mu.Unlock()
	var errs []error
	seen := map[string]bool{} // without an answer the error is the same for each watch
	for _, path := range slices.Sorted(maps.Keys(s.contact.errs)) {
		if err := s.contact.errs[path]; !seen[err.Error()] {
			seen[err.Error()] = true
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
