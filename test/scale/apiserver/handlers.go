package apiserver

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
)

func (s *Server) handler(kinds []Kind) http.Handler {
	mux := http.NewServeMux()
	discovery(mux, kinds)
	groups := map[string]bool{}
	for _, k := range kinds {
		if groups[k.path()] {
			continue
		}
		groups[k.path()] = true
		path := k.path()
		s.route(mux, "GET", path, "/{resource}", s.serveCollection)
		s.route(mux, "GET", path, "/namespaces/{namespace}/{resource}", s.serveCollection)
		s.route(mux, "POST", path, "/namespaces/{namespace}/{resource}", s.serveCreate)
		for _, object := range []string{"/{resource}/{name}", "/namespaces/{namespace}/{resource}/{name}"} {
			s.route(mux, "GET", path, object, s.serveGet)
			s.route(mux, "PATCH", path, object, s.servePatch)
		}
		for _, status := range []string{"/{resource}/{name}/status", "/namespaces/{namespace}/{resource}/{name}/status"} {
			s.route(mux, "PATCH", path, status, s.servePatch)
		}
	}
	return mux
}

type handler func(w http.ResponseWriter, req *http.Request, r *resource)

func (s *Server) route(mux *http.ServeMux, method, group, path string, h handler) {
	mux.HandleFunc(method+" "+group+path, func(w http.ResponseWriter, req *http.Request) {
		r := s.resources[group+"/"+req.PathValue("resource")]
		if r == nil {
			fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource")
			return
		}
		h(w, req, r)
	})
}

func (s *Server) serveCollection(w http.ResponseWriter, req *http.Request, r *resource) {
	q := req.URL.Query()
	sel := selector{namespace: req.PathValue("namespace")}
	var err error
	if sel.labels, err = labels.Parse(q.Get("labelSelector")); err == nil {
		sel.fields, err = fields.ParseSelector(q.Get("fieldSelector"))
	}
	if err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	if watch := q.Get("watch"); watch == "true" || watch == "1" {
		s.serveWatch(w, req, r, sel)
		return
	}
	s.serveList(w, req, r, sel)
}

// serveList answers a request for a list. As on a real server, a list at resource version 0 isn't divided into pages.
func (s *Server) serveList(w http.ResponseWriter, req *http.Request, r *resource, sel selector) {
	q := req.URL.Query()
	s.mu.Lock()
	snap := r.snapshot(s.rv)
	s.mu.Unlock()
	limit, err := strconv.Atoi(q.Get("limit"))
	if err != nil || limit <= 0 || q.Get("resourceVersion") == "0" {
		f := negotiate(req.Header.Get("Accept"))
		w.Header().Set("Content-Type", f.info.MediaType)
		w.WriteHeader(http.StatusOK)
		_ = f.sendList(w, snap, sel) // fails only if the client has closed the connection
		s.listed(r)
		return
	}
	from := 0
	meta := metav1.ListMeta{ResourceVersion: fmt.Sprint(snap.version)}
	if token := q.Get("continue"); token != "" {
		// The token has the version of the first page, so that a watch from this version gets all later changes.
		if _, err := fmt.Sscanf(token, "%d-%s", &from, &meta.ResourceVersion); err != nil {
			fail(w, http.StatusGone, metav1.StatusReasonExpired, "the continue token is too old")
			return
		}
	}
	var items []Object
	for ; from < snap.len() && len(items) < limit; from++ {
		if o := snap.at(from); o != nil && sel.matches(o) {
			items = append(items, o)
		}
	}
	if from < snap.len() {
		meta.Continue = fmt.Sprintf("%d-%s", from, meta.ResourceVersion)
	}
	list := r.kind.NewList(meta, items)
	kind := r.kind.gvk()
	kind.Kind += "List"
	list.GetObjectKind().SetGroupVersionKind(kind)
	answer(w, req, http.StatusOK, list)
	if meta.Continue == "" {
		s.listed(r)
	}
}

func (s *Server) listed(r *resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.sent.Listed = time.Now()
}

func (s *Server) serveGet(w http.ResponseWriter, req *http.Request, r *resource) {
	s.mu.Lock()
	o := r.get(named(req))
	s.mu.Unlock()
	if o == nil {
		notFound(w, req)
		return
	}
	answer(w, req, http.StatusOK, o)
}

func named(req *http.Request) types.NamespacedName {
	return types.NamespacedName{Namespace: req.PathValue("namespace"), Name: req.PathValue("name")}
}

func notFound(w http.ResponseWriter, req *http.Request) {
	fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, req.URL.Path+" not found")
}

// servePatch answers a PATCH. A change of the UID is a conflict. A strategic merge patch is treated as a JSON merge
// patch, so a list in the patch replaces the whole list of the object.
func (s *Server) servePatch(w http.ResponseWriter, req *http.Request, r *resource) {
	patch, err := io.ReadAll(io.LimitReader(req.Body, 3<<20))
	if err != nil {
		return // the client has closed the connection
	}
	s.mu.Lock()
	was := r.get(named(req))
	var now Object
	if was != nil {
		now, err = patched(was, r.kind.New(), patch, req.Header.Get("Content-Type"))
	}
	same := now != nil && err == nil && now.GetUID() == was.GetUID()
	if same {
		s.put(r, now)
	}
	s.mu.Unlock()
	switch {
	case was == nil:
		notFound(w, req)
	case err != nil:
		fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, err.Error())
	case !same:
		fail(w, http.StatusConflict, metav1.StatusReasonConflict, "another UID")
	default:
		answer(w, req, http.StatusOK, now)
	}
}

func patched(was, now Object, patch []byte, kind string) (Object, error) {
	text, err := json.Marshal(was)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(kind, string(types.JSONPatchType)) {
		var p jsonpatch.Patch
		if p, err = jsonpatch.DecodePatch(patch); err == nil {
			text, err = p.Apply(text)
		}
	} else {
		text, err = jsonpatch.MergePatch(text, patch)
	}
	if err == nil {
		err = json.Unmarshal(text, now)
	}
	return now, err
}

func (s *Server) serveCreate(w http.ResponseWriter, req *http.Request, r *resource) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 3<<20))
	if err != nil {
		return // the client has closed the connection
	}
	decoded, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, r.kind.New())
	o, ok := decoded.(Object)
	if err != nil || !ok {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, fmt.Sprintf("not a %s: %v", r.kind.Kind, err))
		return
	}
	o.SetNamespace(req.PathValue("namespace"))
	s.mu.Lock()
	exists := r.get(nameOf(o)) != nil
	if !exists {
		s.put(r, o)
	}
	s.mu.Unlock()
	if exists {
		fail(w, http.StatusConflict, metav1.StatusReasonAlreadyExists, o.GetName()+" already exists")
		return
	}
	answer(w, req, http.StatusCreated, o)
}

func discovery(mux *http.ServeMux, kinds []Kind) {
	groups := &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
	lists := map[string]*metav1.APIResourceList{}
	for _, k := range kinds {
		list := lists[k.path()]
		if list == nil {
			list = &metav1.APIResourceList{
				TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: k.apiVersion(),
			}
			lists[k.path()] = list
			if k.Group != "" {
				version := metav1.GroupVersionForDiscovery{GroupVersion: k.apiVersion(), Version: k.Version}
				groups.Groups = append(groups.Groups, metav1.APIGroup{
					Name: k.Group, Versions: []metav1.GroupVersionForDiscovery{version}, PreferredVersion: version,
				})
			}
		}
		list.APIResources = append(list.APIResources, metav1.APIResource{
			Name: k.Resource, Kind: k.Kind, Namespaced: k.Namespaced, Verbs: metav1.Verbs{"get", "list", "patch", "watch"},
		})
	}
	serve := func(path string, o any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", runtime.ContentTypeJSON)
			_ = json.NewEncoder(w).Encode(o) // fails only if the client has closed the connection
		})
	}
	serve("/api", metav1.APIVersions{
		TypeMeta: metav1.TypeMeta{Kind: "APIVersions", APIVersion: "v1"}, Versions: []string{"v1"},
	})
	serve("/apis", groups)
	for path, list := range lists {
		serve(path, list)
	}
}
