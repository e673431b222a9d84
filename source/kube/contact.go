package kube

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
)

// contact has the last error of each watch. client-go's reflectors don't report that the API server doesn't answer.
type contact struct {
	mu   sync.Mutex
	errs map[string]error // the key is the path of the watch's requests
}

// Transport wraps the HTTP transport of the client (rest.Config.Wrap). For Contact, it records whether the API server
// answers the watches' requests. It also removes fields that policy doesn't need from events of pods and nodes.
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
		ofWatch := q.Has("watch") || q.Has("resourceVersion") || q.Has("limit") // a list begins a watch
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

// recovers reports whether the client continues the watch by itself after a response with this status.
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

// Contact returns the errors of all watches whose last request failed. It is nil if all watches work. Equal errors are
// returned once.
func (s *Source) Contact() error {
	s.contact.mu.Lock()
	defer s.contact.mu.Unlock()
	var errs []error
	seen := map[string]bool{} // if the API server is down, all watches have the same error
	for _, path := range slices.Sorted(maps.Keys(s.contact.errs)) {
		if err := s.contact.errs[path]; !seen[err.Error()] {
			seen[err.Error()] = true
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
